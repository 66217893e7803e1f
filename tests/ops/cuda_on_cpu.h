// Just enough of CUDA for ops/cuda to run on a CPU, a thread for each of a block's: slow, and the same arithmetic,
// exchanges and barriers. Checks alignment, which a GPU would fault on. Used by test_cuda_source.py.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__
#define __CUDA_ARCH__ 900

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
template <class A, class B> auto min(A a, B b) { return a < b ? a : b; }
template <class A, class B> auto max(A a, B b) { return a > b ? a : b; }

struct Index { int x; };
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

struct Block {
    std::barrier<> all;
    std::vector<std::unique_ptr<std::barrier<>>> warps;
    std::vector<float> exchange;
    std::vector<float4> shared;
    Block(int threads, size_t bytes) : all(threads), exchange(threads), shared(bytes / 16 + 1) {
        for (int i = 0; i < threads; i += 32) warps.emplace_back(new std::barrier<>(32));
    }
};
inline thread_local Block* block;
inline void require(bool fine, const char* what) {
    if (!fine) fprintf(stderr, "%s\n", what), abort();
}
template <class T> void aligned(const T* p) { require((uintptr_t)p % alignof(T) == 0, "misaligned access"); }

inline void __syncthreads() { block->all.arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
    require(mask == 0xffffffffu, "a whole warp takes part");
    std::barrier<>& warp = *block->warps[threadIdx.x / 32];
    block->exchange[threadIdx.x] = value;
    warp.arrive_and_wait();
    const float other = block->exchange[threadIdx.x ^ lanes];
    warp.arrive_and_wait();
    return other;
}
template <class T> T __ldg(const T* p) { return aligned(p), *p; }
inline void atomicAdd(float* p, float x) { std::atomic_ref<float>(*p).fetch_add(x); }
inline void atomicAdd(float4* p, float4 v) {
    aligned(p);
    atomicAdd(&p->x, v.x), atomicAdd(&p->y, v.y), atomicAdd(&p->z, v.z), atomicAdd(&p->w, v.w);
}

template <class Body> void launch_on_cpu(int blocks, int threads, size_t shared, void*, Body body) {
    require(threads % 32 == 0 && threads <= 1024 && shared <= 48 << 10, "a legal block");
    for (int b = 0; b < blocks; b++) {
        Block here(threads, shared);
        std::vector<std::thread> running;
        for (int t = 0; t < threads; t++)
            running.emplace_back([&, t] {
                threadIdx = {t}, blockIdx = {b}, blockDim = {threads}, gridDim = {blocks}, block = &here;
                body();
            });
        for (std::thread& thread : running) thread.join();
    }
}

typedef void* cudaStream_t;
typedef int cudaError_t;
constexpr int cudaSuccess = 0;
inline int cudaGetLastError() { return 0; }
inline int cudaSetDevice(int) { return 0; }
inline void cudaMemsetAsync(void* p, int value, size_t n, void*) { memset(p, value, n); }

struct __half { _Float16 value; };
inline float __half2float(__half x) { return (float)x.value; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
