// The published design of multi-scale deformable attention for GPUs (Deformable DETR, Zhu et al., 2021), written anew
// as the peer of ops/cuda: one thread per output channel, each placing every sample itself; backward adds to the
// gradient of value by scalar atomics, and sums the other gradients over a block of one query and head through shared
// memory, sample by sample. float32 and bfloat16 (whose gradients it adds in float32, as ours).
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../ops/deform_attn.h"

namespace {

struct Problem {
    int64_t outputs, pixels, per_batch;  // B * Lq * M * D; S; Lq * M
    int heads, channels, levels, points, height[16], width[16], start[16];
};

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void narrow(float x, float* to) { *to = x; }
__device__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

// The four pixels around a location: whether they are inside, where, and their weights.
struct Corners {
    bool inside[4];
    int64_t at[4];
    float weight[4], dx[4], dy[4];
    __device__ Corners(float x, float y, int width, int height, int64_t row) {
        const int left = (int)floorf(x), top = (int)floorf(y);
        const float fx = x - left, fy = y - top;
        for (int i = 0; i < 4; i++) {
            const int column = left + (i & 1), line = top + (i >> 1);
            const float wx = i & 1 ? fx : 1 - fx, wy = i >> 1 ? fy : 1 - fy;
            inside[i] = column >= 0 && column < width && line >= 0 && line < height;
            at[i] = ((int64_t)line * width + column) * row;
            weight[i] = wx * wy, dx[i] = (i & 1 ? 1 : -1) * wy, dy[i] = (i >> 1 ? 1 : -1) * wx;
        }
    }
};

template <class S>
__global__ void forward_kernel(Problem p, const S* value, const float* locations, const float* weights, S* output) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = (int64_t)p.heads * p.channels;
    if (i >= p.outputs) return;
    const int64_t pair = i / p.channels;
    const S* maps = value + pair / p.per_batch * p.pixels * row + i % row;
    int64_t sample = pair * p.levels * p.points;
    float sum = 0;
    for (int l = 0; l < p.levels; l++)
        for (int k = 0; k < p.points; k++, sample++) {
            const float x = locations[2 * sample] * p.width[l] - 0.5f;
            const float y = locations[2 * sample + 1] * p.height[l] - 0.5f;
            if (!(x > -1 && y > -1 && x < p.width[l] && y < p.height[l])) continue;
            const Corners c(x, y, p.width[l], p.height[l], row);
            float sampled = 0;
            for (int j = 0; j < 4; j++)
                if (c.inside[j]) sampled += c.weight[j] * widen(maps[p.start[l] * row + c.at[j]]);
            sum += weights[sample] * sampled;
        }
    narrow(sum, output + i);
}

template <class S>
__global__ void backward_kernel(
    Problem p, const S* grad_output, const S* value, const float* locations, const float* weights, float* grad_value,
    float* grad_locations, float* grad_weights) {
    extern __shared__ float shared[];  // (3, D)
    const int64_t pair = blockIdx.x, row = (int64_t)p.heads * p.channels, i = pair * p.channels + threadIdx.x;
    const int64_t maps = pair / p.per_batch * p.pixels * row + i % row;
    const float g = widen(grad_output[i]);
    int64_t sample = pair * p.levels * p.points;
    for (int l = 0; l < p.levels; l++)
        for (int k = 0; k < p.points; k++, sample++) {
            const float x = locations[2 * sample] * p.width[l] - 0.5f;
            const float y = locations[2 * sample + 1] * p.height[l] - 0.5f;
            float sums[3] = {};
            if (x > -1 && y > -1 && x < p.width[l] && y < p.height[l]) {
                const Corners c(x, y, p.width[l], p.height[l], row);
                for (int j = 0; j < 4; j++)
                    if (c.inside[j]) {
                        const int64_t at = maps + p.start[l] * row + c.at[j];
                        const float v = widen(value[at]) * g;
                        sums[0] += c.weight[j] * v, sums[1] += c.dx[j] * v, sums[2] += c.dy[j] * v;
                        atomicAdd(grad_value + at, weights[sample] * c.weight[j] * g);
                    }
            }
            for (int j = 0; j < 3; j++) shared[j * p.channels + threadIdx.x] = sums[j];
            __syncthreads();
            for (int n = p.channels, half; n > 1; n = half) {
                half = (n + 1) / 2;
                if ((int)threadIdx.x < n - half)
                    for (int j = 0; j < 3; j++)
                        shared[j * p.channels + threadIdx.x] += shared[j * p.channels + threadIdx.x + half];
                __syncthreads();
            }
            if (threadIdx.x == 0) {
                grad_weights[sample] = shared[0];
                grad_locations[2 * sample] = weights[sample] * p.width[l] * shared[p.channels];
                grad_locations[2 * sample + 1] = weights[sample] * p.height[l] * shared[2 * p.channels];
            }
            __syncthreads();
        }
}

template <class S> __global__ void narrow_kernel(const float* from, S* to, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) narrow(from[i], to + i);
}

template <class S> int launch(const wb_deform_attn_args& a, const Problem& p, bool backward) {
    const cudaStream_t stream = (cudaStream_t)a.runner;
    const float *locations = (const float*)a.locations, *weights = (const float*)a.weights;
    if (!backward) {
        forward_kernel<S><<<(unsigned)((p.outputs + 1023) / 1024), 1024, 0, stream>>>(
            p, (const S*)a.value, locations, weights, (S*)a.output);
        return (int)cudaGetLastError();
    }
    const int64_t n = a.batch * a.pixels * a.heads * a.channels;
    float* grad_value = (float*)(sizeof(S) == 4 ? a.grad_value : a.scratch);
    cudaMemsetAsync(grad_value, 0, n * sizeof(float), stream);
    backward_kernel<S><<<(unsigned)(p.outputs / p.channels), p.channels, 3 * p.channels * sizeof(float), stream>>>(
        p, (const S*)a.grad_output, (const S*)a.value, locations, weights, grad_value, (float*)a.grad_locations,
        (float*)a.grad_weights);
    if (sizeof(S) != 4)
        narrow_kernel<S><<<(unsigned)((n + 255) / 256), 256, 0, stream>>>(grad_value, (S*)a.grad_value, n);
    return (int)cudaGetLastError();
}

int run(const wb_deform_attn_args& a, bool backward) {
    if (a.abi != WB_ABI || a.levels > 16) return -1;
    Problem p = {};
    p.outputs = a.batch * a.queries * a.heads * a.channels, p.pixels = a.pixels, p.per_batch = a.queries * a.heads;
    p.heads = (int)a.heads, p.channels = (int)a.channels, p.levels = (int)a.levels, p.points = (int)a.points;
    for (int l = 0, start = 0; l < p.levels; l++) {
        p.height[l] = (int)a.shapes[2 * l], p.width[l] = (int)a.shapes[2 * l + 1], p.start[l] = start;
        start += p.height[l] * p.width[l];
    }
    cudaSetDevice((int)a.threads);
    if (a.dtype == WB_FLOAT32) return launch<float>(a, p, backward);
    return a.dtype == WB_BFLOAT16 ? launch<__nv_bfloat16>(a, p, backward) : -3;
}

}  // namespace

extern "C" {
int wb_deform_attn_forward(const wb_deform_attn_args* args) { return run(*args, false); }
int wb_deform_attn_backward(const wb_deform_attn_args* args) { return run(*args, true); }
}
