// What this machine could do at most, for benchmarks/deform_attn.py: each function returns the seconds of its best try.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <chrono>
#include <thread>
#include <vector>

namespace {

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));

// Runs body(thread) on all threads at once and returns the seconds of the best of `tries`.
template <class Body> double best(int threads, int tries, const Body& body) {
    double least = 1e30;
    for (int i = 0; i < tries; i++) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> others;
        for (int t = 1; t < threads; t++) others.emplace_back([&, t] { body(t); });
        body(0);
        for (std::thread& other : others) other.join();
        least = fmin(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
}

volatile float sink;

// Reads, and with `grads` also adds to, the four pixels of every sample, in the order of the samples.
template <int D>
double touch(const float* maps, float* grads, const int32_t* pixels, const int32_t* steps, int64_t heads, int64_t pixels_per_map,
             int64_t samples, int threads, int tries) {
    constexpr int N = D / 8;
    return best(threads, tries, [&](int thread) {
        vec sum[4][N] = {};
        for (int64_t h = thread; h < heads; h += threads) {
            const float* map = maps + h * pixels_per_map * D;
            float* grad = grads ? grads + h * pixels_per_map * D : nullptr;
            for (int64_t i = 0; i < samples; i++) {
                const int64_t at = (int64_t)pixels[h * samples + i] * D, down = (int64_t)steps[i] * D;
                const int64_t corner[4] = {at, at + D, at + down, at + down + D};
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
#pragma GCC unroll 16
                    for (int v = 0; v < N; v++) {
                        sum[c][v] += *(const vec*)(map + corner[c] + v * 8);
                        if (grad) *(vec*)(grad + corner[c] + v * 8) += sum[0][0];
                    }
            }
        }
        for (auto& row : sum)
            for (vec& v : row) sink = v[0];
    });
}

}  // namespace

extern "C" {
double ceiling_touch(const float* maps, float* grads, const int32_t* pixels, const int32_t* steps, int64_t heads,
                     int64_t pixels_per_map, int64_t samples, int64_t channels, int threads, int tries) {
    auto* function = channels == 8 ? touch<8> : channels == 16 ? touch<16> : touch<32>;
    return function(maps, grads, pixels, steps, heads, pixels_per_map, samples, threads, tries);
}

// Seconds to copy `bytes` of memory far larger than the caches.
double ceiling_copy(int64_t bytes, int threads, int tries) {
    std::vector<char> from(bytes, 1), to(bytes, 2);
    return best(threads, tries, [&](int t) { memcpy(&to[bytes / threads * t], &from[bytes / threads * t], bytes / threads); });
}

// Seconds for `rounds` times 12 * `ceiling_lanes` fused multiply-adds on each thread.
#if defined(__AVX512F__)
typedef float wide __attribute__((vector_size(64)));
#else
typedef float wide __attribute__((vector_size(32)));
#endif
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
