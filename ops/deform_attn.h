// Multi-scale deformable attention: the C interface of the compiled back ends.
//
// Plain pointers and integers only, so that neither a libtorch nor a Python upgrade asks for a rebuild.
// All tensors are contiguous. `value`, `output`, `grad_output` and `grad_value` have the storage type `dtype`;
// locations and weights and their gradients are double for dtype 1, else float.
#pragma once
#include <stdint.h>

#define WB_ABI 1
#define WB_API __attribute__((visibility("default")))

typedef enum { WB_FLOAT32 = 0, WB_FLOAT64 = 1, WB_FLOAT16 = 2, WB_BFLOAT16 = 3 } wb_dtype;

typedef struct {
    int64_t abi;          // WB_ABI of the caller
    int64_t dtype;        // wb_dtype
    int64_t batch;        // B
    int64_t pixels;       // S, the sum of height * width over the levels, below 2^31
    int64_t heads;        // M
    int64_t channels;     // D
    int64_t queries;      // Lq
    int64_t levels;       // L
    int64_t points;       // P
    const int64_t* shapes;  // (L, 2) height, width; host memory
    const void* value;      // (B, S, M, D)
    const void* locations;  // (B, Lq, M, L, P, 2) x, y
    const void* weights;    // (B, Lq, M, L, P)
    void* output;           // (B, Lq, M, D); forward only
    const void* grad_output;  // (B, Lq, M, D); this and the next three: backward only
    void* grad_value;         // (B, S, M, D)
    void* grad_locations;     // (B, Lq, M, L, P, 2)
    void* grad_weights;       // (B, Lq, M, L, P)
    int64_t threads;  // CPU: how many threads to use. CUDA: the device's index.
    void* runner;     // CPU: GOMP_parallel of the OpenMP runtime already in the process, or null. CUDA: the stream.
    int64_t isa;      // CPU: index into wb_isa_name, or -1 for the best this processor has
    void* scratch;    // CUDA backward of half precision: float (B, S, M, D); else null
} wb_deform_attn_args;

#ifdef __cplusplus
extern "C" {
#endif
// 0: done. -1: other ABI. -2: out of memory. -3: unknown dtype or instruction set.
// -4: more levels or samples a query than a block holds (CUDA). Above 0: a cudaError_t.
WB_API int wb_deform_attn_forward(const wb_deform_attn_args* args);
WB_API int wb_deform_attn_backward(const wb_deform_attn_args* args);
// CPU library only. The name of instruction set `index` when this library has it and the processor runs it, else null.
WB_API const char* wb_isa_name(int index);
#ifdef __cplusplus
}
#endif
