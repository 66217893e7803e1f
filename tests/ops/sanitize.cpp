// Calls the CPU kernel with tensors of exactly their size in memory, for the sanitizers to watch.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "deform_attn.h"

static std::mt19937 generator(0);
static int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// n numbers in a storage type, each of about the given size; exactly as many bytes as they need.
static std::vector<char> numbers(int64_t n, int64_t dtype, double scale, double shift = 0) {
    const int64_t bytes = dtype == WB_FLOAT64 ? 8 : dtype == WB_FLOAT32 ? 4 : 2;
    std::vector<char> data(n * bytes);
    std::normal_distribution<double> normal(shift, scale);
    for (int64_t i = 0; i < n; i++) {
        const double x = normal(generator);
        const float f = (float)x;
        uint32_t bits;
        memcpy(&bits, &f, 4);
        const uint16_t brain = bits >> 16, half = dtype == WB_FLOAT16 ? (uint16_t)pick(0, 65535) : brain;
        memcpy(data.data() + i * bytes, bytes == 8 ? (const void*)&x : bytes == 4 ? (const void*)&f : (const void*)&half, bytes);
    }
    data.shrink_to_fit();
    return data;
}

int main() {
    int calls = 0;
    for (int round = 0; round < 120; round++) {
        wb_deform_attn_args a = {};
        a.abi = WB_ABI, a.dtype = round % 4;
        a.batch = pick(0, 2), a.heads = pick(1, 4), a.channels = pick(1, 70), a.queries = pick(0, 40);
        a.levels = pick(1, 4), a.points = round % 10 ? pick(1, 8) : pick(60, 300);
        std::vector<int64_t> shapes(2 * a.levels);
        for (int64_t& size : shapes) size = pick(1, 7);
        for (int64_t l = 0; l < a.levels; l++) a.pixels += shapes[2 * l] * shapes[2 * l + 1];
        const int64_t wide = a.dtype == WB_FLOAT64 ? WB_FLOAT64 : WB_FLOAT32;
        const int64_t values = a.batch * a.pixels * a.heads * a.channels;
        const int64_t outputs = a.batch * a.queries * a.heads * a.channels;
        const int64_t samples = a.batch * a.queries * a.heads * a.levels * a.points;
        const double reach = round % 3 == 0 ? 1e30 : round % 3 == 1 ? 1e6 : 0.4;  // far outside, or about the map
        auto value = numbers(values, a.dtype, 1), output = numbers(outputs, a.dtype, 0), grad = numbers(outputs, a.dtype, 1);
        auto locations = numbers(2 * samples, wide, reach, 0.5), weights = numbers(samples, wide, 1);
        auto grad_value = numbers(values, a.dtype, 0), grad_locations = numbers(2 * samples, wide, 0);
        auto grad_weights = numbers(samples, wide, 0);
        a.shapes = shapes.data(), a.value = value.data(), a.locations = locations.data(), a.weights = weights.data();
        a.output = output.data(), a.grad_output = grad.data(), a.grad_value = grad_value.data();
        a.grad_locations = grad_locations.data(), a.grad_weights = grad_weights.data();
        a.threads = pick(1, 5);
        for (a.isa = 0; a.isa < 3; a.isa++) {
            if (!wb_isa_name((int)a.isa)) continue;
            if (wb_deform_attn_forward(&a) || wb_deform_attn_backward(&a)) return 1;
            calls++;
        }
    }
    printf("%d calls\n", calls);
    return calls == 0;
}
