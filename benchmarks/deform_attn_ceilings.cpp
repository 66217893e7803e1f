// What this machine could do at most, for benchmarks/deform_attn.py: each function returns the seconds of its best try.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kWidest = 16;
#elif defined(__AVX__)
constexpr int kWidest = 8;
#else
constexpr int kWidest = 4;
#endif
template <int W> struct Vec { typedef float type __attribute__((vector_size(4 * W), aligned(4), may_alias)); };
typedef Vec<kWidest>::type wide;

// Runs body(thread) on all threads, which wait for each other before each of `tries`; the seconds of the best one.
template <class Body> double best(int threads, int tries, const Body& body) {
    std::atomic<int64_t> arrived{0};
    double least = 1e30;
    const auto wait = [&](int64_t until) {
        arrived++;
        while (arrived < until * threads) std::this_thread::yield();
    };
    const auto work = [&](int t) {
        for (int64_t i = 0; i < tries; i++) {
            wait(2 * i + 1);
            const auto start = std::chrono::steady_clock::now();
            body(t);
            wait(2 * i + 2);
            const double taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            if (t == 0) least = fmin(least, taken);
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
    return least;
}

volatile float sink;

// Reads, and with `grads` also adds to, the four pixels of every sample, in the order of the samples.
template <int D>
double touch(
    const float* maps, float* grads, const int32_t* pixels, const int32_t* steps, int64_t heads, int64_t map_pixels,
    int64_t samples, int threads, int tries) {
    constexpr int W = D < kWidest ? D : kWidest, N = D / W;
    typedef typename Vec<W>::type vec;
    return best(threads, tries, [&](int thread) {
        vec sum[4][N] = {};
        for (int64_t h = thread; h < heads; h += threads) {
            const float* map = maps + h * map_pixels * D;
            float* grad = grads ? grads + h * map_pixels * D : nullptr;
            for (int64_t i = 0; i < samples; i++) {
                const int64_t at = (int64_t)pixels[h * samples + i] * D, down = (int64_t)steps[i] * D;
                const int64_t corner[4] = {at, at + D, at + down, at + down + D};
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
#pragma GCC unroll 16
                    for (int v = 0; v < N; v++) {
                        sum[c][v] += *(const vec*)(map + corner[c] + v * W);
                        if (grad) *(vec*)(grad + corner[c] + v * W) += sum[0][0];
                    }
            }
        }
        for (auto& row : sum)
            for (vec& v : row) sink = v[0];
    });
}

}  // namespace

extern "C" {
double ceiling_touch(
    const float* maps, float* grads, const int32_t* pixels, const int32_t* steps, int64_t heads, int64_t map_pixels,
    int64_t samples, int64_t channels, int threads, int tries) {
    auto* function = channels == 8 ? touch<8> : channels == 16 ? touch<16> : touch<32>;
    return function(maps, grads, pixels, steps, heads, map_pixels, samples, threads, tries);
}

// Seconds to copy `bytes` of memory far larger than the caches.
double ceiling_copy(int64_t bytes, int threads, int tries) {
    std::vector<char> from(bytes, 1), to(bytes, 2);
    const int64_t part = bytes / threads;
    return best(threads, tries, [&](int t) { memcpy(&to[part * t], &from[part * t], part); });
}

// Seconds for `rounds` times 12 * `ceiling_lanes` fused multiply-adds on each thread.
int ceiling_lanes() { return sizeof(wide) / 4; }
double ceiling_multiply_add(int64_t rounds, int threads, int tries) {
    return best(threads, tries, [&](int t) {
        wide x[12], a = wide{} + 0.999f, b = wide{} + (float)t;
        for (wide& v : x) v = b;
        for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
            for (int k = 0; k < 12; k++) x[k] = x[k] * a + b;
#pragma GCC unroll 12
            for (int k = 0; k < 12; k++) asm volatile("" : "+v"(x[k]));
        }
        for (wide& v : x) sink = v[0];
    });
}
}
