// Multi-scale deformable attention on a CPU: chooses the instruction set, divides the work, runs the threads.
#include <stdlib.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kernel.h"

// Whether the AVX copies of the kernel are linked in.
#if defined(__x86_64__) && !defined(WB_ONLY_GENERIC)
#define WB_X86
#endif

#if defined(WB_X86)
extern const Kernel kernel_avx512, kernel_avx2;
#endif
extern const Kernel kernel_generic;

namespace {

constexpr int kSets = 3;

const Kernel* kernel_of(int isa) {
#if defined(WB_X86)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == 0)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
                   ? &kernel_avx512
                   : nullptr;
    if (isa == 1) return avx2 ? &kernel_avx2 : nullptr;
#endif
    return isa == 2 ? &kernel_generic : nullptr;
}

// Work that any number of threads may enter; each takes the next task until none is left.
struct Job {
    const wb_deform_attn_args* args;
    const Kernel* kernel;
    bool backward;
    int64_t pieces, tasks;  // pieces: of the queries (forward) or levels (backward) of one batch element and head
    size_t bytes;
    std::atomic<int64_t> next{0};
    std::atomic<bool> out_of_memory{false};

    int64_t bound(int64_t piece) const { return (backward ? args->levels : args->queries) * piece / pieces; }

    void measure() {
        bytes = backward ? 64 : kernel->forward_bytes(*args);
        for (int64_t piece = 0; backward && piece < pieces; piece++) {
            const size_t needed = kernel->backward_bytes(*args, bound(piece), bound(piece + 1));
            if (needed > bytes) bytes = needed;
        }
    }

    void work() {
        if (next.load(std::memory_order_relaxed) >= tasks) return;
        void* scratch = aligned_alloc(64, bytes);
        if (!scratch) {
            out_of_memory = true;
            return;
        }
        for (int64_t task; (task = next++) < tasks;) {
            const int64_t piece = task % pieces, map = task / pieces, first = bound(piece), last = bound(piece + 1);
            auto* function = backward ? kernel->backward : kernel->forward;
            function(*args, map / args->heads, map % args->heads, first, last, scratch);
        }
        free(scratch);
    }
};

void enter(void* job) { ((Job*)job)->work(); }

int run(const wb_deform_attn_args* args, bool backward) {
    if (args->abi != WB_ABI) return -1;
    Job job;
    job.args = args, job.backward = backward, job.kernel = nullptr;
    if (args->isa >= 0) job.kernel = kernel_of((int)args->isa);
    for (int isa = 0; args->isa < 0 && !job.kernel && isa < kSets; isa++) job.kernel = kernel_of(isa);
    if (!job.kernel || args->dtype < WB_FLOAT32 || args->dtype > WB_BFLOAT16) return -3;
    const int64_t maps = args->batch * args->heads, whole = backward ? args->levels : args->queries;
    int64_t threads = args->threads < 1 ? 1 : args->threads;
    // One task per feature map while that keeps every thread busy. Beyond, backward divides by levels, whose gradients
    // do not meet, so that the result depends on no thread count; forward by queries.
    const bool enough = maps >= 2 * threads || maps % threads == 0;
    job.pieces = enough || !maps ? 1 : backward ? whole : (2 * threads + maps - 1) / maps;
    if (job.pieces > whole) job.pieces = whole;
    if (job.pieces < 1) job.pieces = 1;
    job.tasks = maps * job.pieces;
    if (threads > job.tasks) threads = job.tasks;
    job.measure();
    if (threads <= 1) {
        job.work();
    } else if (args->runner) {
        typedef void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
        ((parallel)args->runner)(enter, &job, (unsigned)threads, 0);
    } else {
        try {
            std::vector<std::thread> others;
            others.reserve(threads - 1);
            for (int64_t i = 1; i < threads; i++) {
                try {
                    others.emplace_back(enter, &job);
                } catch (...) {
                    break;  // fewer threads do the same work
                }
            }
            job.work();
            for (std::thread& other : others) other.join();
        } catch (...) {
            return -2;
        }
    }
    return job.out_of_memory && job.next < job.tasks ? -2 : 0;
}

}  // namespace

extern "C" {
int wb_deform_attn_forward(const wb_deform_attn_args* args) { return run(args, false); }
int wb_deform_attn_backward(const wb_deform_attn_args* args) { return run(args, true); }
const char* wb_isa_name(int index) {
    if (index < 0 || index >= kSets || !kernel_of(index)) return nullptr;
#if defined(__aarch64__)
    return "NEON";
#else
    static const char* const names[kSets] = {"AVX-512", "AVX2", "generic"};
    return names[index];
#endif
}
}
