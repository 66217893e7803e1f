// Multi-scale deformable attention on a CUDA device of compute capability 7.0 or newer.
//
// A pair is one query and head; the samples and the output row of consecutive pairs are consecutive in memory. A block
// takes a tile of pairs:
//   1. its threads place the tile's samples, one each, into shared memory: a pixel and four weights, as on the CPU
//      (cpu/kernel.cpp tells how the hat function spares the borders' branches);
//   2. a few neighbouring lanes take a pair, each V channels: 16 bytes a load, four independent loads a sample.
// So no sample is placed twice, where one thread per output channel would place it D times. Backward adds to the
// gradient of value with vector atomics in float32, skipping weights of zero, and sums the products for the locations
// and weights over the lanes, several samples at once, by a reduce-scatter.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../deform_attn.h"

namespace {

constexpr int kThreads = 256;
constexpr int kMaxLevels = 16;
constexpr int kSharedBytes = 32 << 10;

struct Problem {
    int64_t pairs, pixels, per_batch;  // B * Lq * M; S; Lq * M
    int heads, channels, levels, points, samples, tile;  // samples: of one pair; tile: pairs of one block
    int height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];
};

struct Placed {
    float4 weight;  // of the pixels (x, y), (x+1, y), (x, y+1), (x+1, y+1)
    int pixel, level;
};

struct Axis {
    int cell;
    float offset, near, far;  // distance to the near pixel; hat of the near and of the far pixel
};

__device__ __forceinline__ Axis along(float location, int size) {
    const float x = fmaf(location, (float)size, -0.5f);
    const int cell = (int)fminf(fmaxf(x, 0.f), (float)max(size - 2, 0));  // NaN too becomes 0
    const float t = fmaf(location, (float)size, -((float)cell + 0.5f));
    return {cell, t, fmaxf(1.f - fabsf(t), 0.f), size > 1 ? fmaxf(1.f - fabsf(t - 1.f), 0.f) : 0.f};
}
// A hat's slope to the right of a point.
__device__ __forceinline__ float slope(float t) {
    return t >= -1.f && t < 0.f ? 1.f : t >= 0.f && t < 1.f ? -1.f : 0.f;
}

// Places the samples of `count` pairs from `first` on.
__device__ __forceinline__ void place(
    const Problem& p, int64_t first, int count, const float* locations, const float* weights, Placed* placed) {
    for (int i = threadIdx.x; i < count * p.samples; i += blockDim.x) {
        const int level = i % p.samples / p.points;
        const int64_t at = first * p.samples + i;
        const float2 location = __ldg((const float2*)locations + at);
        const float attention = __ldg(weights + at);
        const Axis x = along(location.x, p.width[level]), y = along(location.y, p.height[level]);
        const float top = attention * y.near, bottom = attention * y.far;
        placed[i] = {
            make_float4(top * x.near, top * x.far, bottom * x.near, bottom * x.far),
            p.start[level] + y.cell * p.width[level] + x.cell,
            level};
    }
}

template <class S, int V> struct alignas(sizeof(S) * V) Pack { S item[V]; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

template <class S, int V> __device__ __forceinline__ void load(float (&to)[V], const S* from) {
    const Pack<S, V> pack = *(const Pack<S, V>*)from;
#pragma unroll
    for (int v = 0; v < V; v++) to[v] = widen(pack.item[v]);
}

// Adds to V floats; a whole number of float4 where V allows.
template <int V> __device__ __forceinline__ void add(float* to, const float (&g)[V], float w) {
#if __CUDA_ARCH__ >= 900
    constexpr int Whole = V / 4 * 4;
#pragma unroll
    for (int v = 0; v < Whole; v += 4)
        atomicAdd((float4*)(to + v), make_float4(w * g[v], w * g[v + 1], w * g[v + 2], w * g[v + 3]));
#else
    constexpr int Whole = 0;
#endif
#pragma unroll
    for (int v = Whole; v < V; v++) atomicAdd(to + v, w * g[v]);
}

template <class S, int V, int Lanes>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const __grid_constant__ Problem p, const S* __restrict__ value, const float* __restrict__ locations,
    const float* __restrict__ weights, S* __restrict__ output) {
    extern __shared__ float4 shared[];
    Placed* placed = (Placed*)shared;
    const int pair = threadIdx.x / Lanes, lane = threadIdx.x % Lanes;
    const int64_t row = (int64_t)p.heads * p.channels;  // from pixel to pixel
    for (int64_t first = (int64_t)blockIdx.x * p.tile; first < p.pairs; first += (int64_t)gridDim.x * p.tile) {
        const int count = (int)min((int64_t)p.tile, p.pairs - first);
        place(p, first, count, locations, weights, placed);
        __syncthreads();
        if (pair < count) {
            const int64_t at = first + pair;
            const S* maps = value + at / p.per_batch * p.pixels * row + at % p.heads * p.channels;
            for (int c = lane * V; c < p.channels; c += Lanes * V) {
                float sum[V] = {};
                const Placed* sample = placed + pair * p.samples;
                for (int l = 0; l < p.levels; l++) {
                    const int64_t dx = p.width[l] > 1 ? row : 0, dy = p.height[l] > 1 ? p.width[l] * row : 0;
#pragma unroll 4
                    for (int k = 0; k < p.points; k++, sample++) {
                        const float4 w = sample->weight;
                        const S* from = maps + sample->pixel * row + c;
                        float a[V], b[V], d[V], e[V];
                        load<S, V>(a, from), load<S, V>(b, from + dx);
                        load<S, V>(d, from + dy), load<S, V>(e, from + dy + dx);
#pragma unroll
                        for (int v = 0; v < V; v++) sum[v] += w.x * a[v] + w.y * b[v] + w.z * d[v] + w.w * e[v];
                    }
                }
                Pack<S, V> pack;
#pragma unroll
                for (int v = 0; v < V; v++) narrow(sum[v], pack.item[v]);
                *(Pack<S, V>*)(output + at * p.channels + c) = pack;
            }
        }
        __syncthreads();
    }
}

// The sum over `Lanes` lanes of value[lane % K]: K - 1 exchanges instead of K * log2(K), then the lanes beyond K.
template <int K, int Lanes> __device__ __forceinline__ float reduce_scatter(float (&value)[K], int lane) {
#pragma unroll
    for (int m = K / 2; m > 0; m /= 2) {
        const bool upper = lane & m;
#pragma unroll
        for (int i = 0; i < m; i++) {
            const float other = __shfl_xor_sync(0xffffffffu, upper ? value[i] : value[i + m], m);
            value[i] = (upper ? value[i + m] : value[i]) + other;
        }
    }
#pragma unroll
    for (int m = K; m < Lanes; m *= 2)
        value[0] += __shfl_xor_sync(0xffffffffu, value[0], m);
    return value[0];
}

template <class S, int V, int Lanes>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const __grid_constant__ Problem p, const S* __restrict__ grad_output, const S* __restrict__ value,
    const float* __restrict__ locations, const float* __restrict__ weights, float* __restrict__ grad_value,
    float* __restrict__ grad_locations, float* __restrict__ grad_weights) {
    constexpr int K = Lanes < 4 ? Lanes : 4;  // samples at a time: their products stay in registers
    extern __shared__ float4 shared[];
    Placed* placed = (Placed*)shared;
    const int pair = threadIdx.x / Lanes, lane = threadIdx.x % Lanes;
    const int64_t row = (int64_t)p.heads * p.channels;
    for (int64_t first = (int64_t)blockIdx.x * p.tile; first < p.pairs; first += (int64_t)gridDim.x * p.tile) {
        const int count = (int)min((int64_t)p.tile, p.pairs - first);
        place(p, first, count, locations, weights, placed);
        __syncthreads();
        const bool active = pair < count;  // the others too take part in the exchanges
        const int64_t at = first + (active ? pair : 0);
        const int64_t maps = at / p.per_batch * p.pixels * row + at % p.heads * p.channels;
        for (int begin = 0; begin < p.samples; begin += K) {
            float dot[4][K] = {};
            for (int c = lane * V; active && c < p.channels; c += Lanes * V) {
                float g[V];
                load<S, V>(g, grad_output + at * p.channels + c);
#pragma unroll
                for (int k = 0; k < K; k++) {
                    if (begin + k >= p.samples) break;
                    const Placed& sample = placed[pair * p.samples + begin + k];
                    const int width = p.width[sample.level];
                    const int64_t dx = width > 1 ? row : 0, dy = p.height[sample.level] > 1 ? width * row : 0;
                    const int64_t from = maps + sample.pixel * row + c;
                    const int64_t corner[4] = {from, from + dx, from + dy, from + dy + dx};
                    const float weight[4] = {sample.weight.x, sample.weight.y, sample.weight.z, sample.weight.w};
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float x[V];
                        load<S, V>(x, value + corner[i]);
#pragma unroll
                        for (int v = 0; v < V; v++) dot[i][k] += g[v] * x[v];
                        if (weight[i] != 0.f) add<V>(grad_value + corner[i], g, weight[i]);
                    }
                }
            }
            float d[4];
#pragma unroll
            for (int i = 0; i < 4; i++) d[i] = reduce_scatter<K, Lanes>(dot[i], lane);
            const int mine = begin + lane;
            if (active && lane < K && mine < p.samples) {
                const int level = mine / p.points, height = p.height[level], width = p.width[level];
                const int64_t sample = at * p.samples + mine;
                const float2 location = __ldg((const float2*)locations + sample);
                const float attention = __ldg(weights + sample);
                const Axis x = along(location.x, width), y = along(location.y, height);
                const float left = y.near * d[0] + y.far * d[2], right = y.near * d[1] + y.far * d[3];
                const float top = x.near * d[0] + x.far * d[1], bottom = x.near * d[2] + x.far * d[3];
                const float far_x = width > 1 ? slope(x.offset - 1.f) : 0.f;
                const float far_y = height > 1 ? slope(y.offset - 1.f) : 0.f;
                grad_weights[sample] = x.near * left + x.far * right;
                ((float2*)grad_locations)[sample] = make_float2(
                    attention * width * (slope(x.offset) * left + far_x * right),
                    attention * height * (slope(y.offset) * top + far_y * bottom));
            }
        }
        __syncthreads();
    }
}

template <class S> __global__ void narrow_kernel(const float* __restrict__ from, S* __restrict__ to, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        narrow(from[i], to[i]);
}

template <class S, int V, int Lanes> int launch(const wb_deform_attn_args& a, Problem p, bool backward) {
    const int fit = kSharedBytes / (int)(p.samples * sizeof(Placed));
    if (fit < 1) return -4;
    p.tile = min(kThreads / Lanes, fit);
    const int64_t tiles = (p.pairs + p.tile - 1) / p.tile;
    const int blocks = (int)min(tiles, (int64_t)0x7fffffff);
    const int threads = (p.tile * Lanes + 31) / 32 * 32;
    const size_t shared = (size_t)p.tile * p.samples * sizeof(Placed);
    const cudaStream_t stream = (cudaStream_t)a.runner;
    const float *locations = (const float*)a.locations, *weights = (const float*)a.weights;
    if (!backward) {
        if (blocks)
            forward_kernel<S, V, Lanes><<<blocks, threads, shared, stream>>>(
                p, (const S*)a.value, locations, weights, (S*)a.output);
        return (int)cudaGetLastError();
    }
    const int64_t n = a.batch * a.pixels * a.heads * a.channels;
    float* grad_value = (float*)(sizeof(S) == 4 ? a.grad_value : a.scratch);
    cudaMemsetAsync(grad_value, 0, n * sizeof(float), stream);
    if (blocks)
        backward_kernel<S, V, Lanes><<<blocks, threads, shared, stream>>>(
            p, (const S*)a.grad_output, (const S*)a.value, locations, weights, grad_value, (float*)a.grad_locations,
            (float*)a.grad_weights);
    if (sizeof(S) != 4 && n)
        narrow_kernel<S><<<(int)min((n + kThreads - 1) / kThreads, (int64_t)65535), kThreads, 0, stream>>>(
            grad_value, (S*)a.grad_value, n);
    return (int)cudaGetLastError();
}

template <class S> int by_channels(const wb_deform_attn_args& a, const Problem& p, bool backward) {
    constexpr int V = 16 / sizeof(S);
    if (p.channels % V) return launch<S, 1, 32>(a, p, backward);
    const int lanes = p.channels / V;
    if (lanes <= 2) return launch<S, V, 2>(a, p, backward);
    if (lanes <= 4) return launch<S, V, 4>(a, p, backward);
    if (lanes <= 8) return launch<S, V, 8>(a, p, backward);
    if (lanes <= 16) return launch<S, V, 16>(a, p, backward);
    return launch<S, V, 32>(a, p, backward);
}

int run(const wb_deform_attn_args* args, bool backward) {
    const wb_deform_attn_args& a = *args;
    if (a.abi != WB_ABI) return -1;
    if (a.levels > kMaxLevels) return -4;
    Problem p = {};
    p.pairs = a.batch * a.queries * a.heads, p.pixels = a.pixels, p.per_batch = a.queries * a.heads;
    p.heads = (int)a.heads, p.channels = (int)a.channels, p.levels = (int)a.levels, p.points = (int)a.points;
    if (a.levels * a.points * (int64_t)sizeof(Placed) > kSharedBytes) return -4;
    p.samples = p.levels * p.points;
    for (int l = 0, start = 0; l < p.levels; l++) {
        p.height[l] = (int)a.shapes[2 * l], p.width[l] = (int)a.shapes[2 * l + 1], p.start[l] = start;
        start += p.height[l] * p.width[l];
    }
    const cudaError_t error = cudaSetDevice((int)a.threads);  // the caller has made it torch's current device too
    if (error != cudaSuccess) return (int)error;
    if (a.dtype == WB_FLOAT32) return by_channels<float>(a, p, backward);
    if (a.dtype == WB_FLOAT16) return by_channels<__half>(a, p, backward);
    if (a.dtype == WB_BFLOAT16) return by_channels<__nv_bfloat16>(a, p, backward);
    return -3;
}

}  // namespace

extern "C" {
int wb_deform_attn_forward(const wb_deform_attn_args* args) { return run(args, false); }
int wb_deform_attn_backward(const wb_deform_attn_args* args) { return run(args, true); }
}
