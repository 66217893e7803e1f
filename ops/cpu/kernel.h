// What one instruction set's copy of the kernel offers to the dispatcher.
#pragma once
#include <stddef.h>

#include "../deform_attn.h"

struct Kernel {
    // Bytes of scratch for the task below.
    size_t (*forward_bytes)(const wb_deform_attn_args& args);
    size_t (*backward_bytes)(const wb_deform_attn_args& args, int64_t first, int64_t last);
    // Queries [first, last) of one batch element and head.
    void (*forward)(
        const wb_deform_attn_args& args, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch);
    // Levels [first, last) of one batch element and head, all queries.
    void (*backward)(
        const wb_deform_attn_args& args, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch);
};
