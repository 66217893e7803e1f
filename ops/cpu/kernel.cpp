// Multi-scale deformable attention on a CPU. Compiled once per instruction set (WB_KERNEL names the copy), so nothing
// here may use inline functions of the standard library: the linker would keep one copy of those for all processors.
//
// One task is one batch element and head. Its feature maps are packed to (S, padded D) in the accumulation type: the
// rows of one head lie M*D apart in `value`, which maps them all to a few cache sets, and packing also converts half
// precision and pads D to whole vectors. Then, for a block of queries:
//   1. `place` computes, vectorised over all samples of the block, the index of one pixel and four weights;
//   2. `gather` (forward) or `scatter` (backward) does the channels, vectorised over D.
// A sample reads the pixels (x, y), (x+1, y), (x, y+1), (x+1, y+1) with x clamped to [0, W-2], each weighted by the hat
// function max(0, 1 - |distance|): inside the map that is bilinear interpolation, and what lies outside weighs 0, so
// neither borders nor far locations need a branch.
#include "kernel.h"

#include <string.h>

#include <utility>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

constexpr int kBlockSamples = 192;  // samples placed at once: their indices and weights stay in the first-level cache

// ---- vectors -------------------------------------------------------------------------------------------------------

template <class T, int W> struct Vec { typedef T type __attribute__((vector_size(W * sizeof(T)))); };
template <class T, int W> using vec = typename Vec<T, W>::type;
template <class T> struct IntOf;
template <> struct IntOf<float> { typedef int32_t type; };
template <> struct IntOf<double> { typedef int64_t type; };

template <class T, int W> INLINE vec<T, W> load(const T* p) {
    vec<T, W> v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class T, int W> INLINE void store(T* p, vec<T, W> v) { memcpy(p, &v, sizeof v); }
template <class T, int W> INLINE vec<T, W> splat(T x) { return x - vec<T, W>{}; }

// Lane i of the result is lane i / Q * Stride + i % Q * Step + Offset of a and b laid side by side.
template <class T, int W, int Q, int Stride, int Step, int Offset, int... I>
INLINE vec<T, W> pick(vec<T, W> a, vec<T, W> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I / Q * Stride + I % Q * Step + Offset)...);
#else
    typedef vec<typename IntOf<T>::type, W> index;
    return __builtin_shuffle(a, b, index{(I / Q * Stride + I % Q * Step + Offset)...});
#endif
}
template <int W> using lanes = std::make_integer_sequence<int, W>;
// Sums neighbouring runs of Q lanes: (2W lanes in runs of 2Q) -> (W lanes in runs of Q).
template <class T, int W, int Q> INLINE vec<T, W> fold(vec<T, W> a, vec<T, W> b) {
    return pick<T, W, Q, 2 * Q, 1, 0>(a, b, lanes<W>()) + pick<T, W, Q, 2 * Q, 1, Q>(a, b, lanes<W>());
}
// Every second lane of a and b, from lane `Offset` on; and the way back.
template <class T, int W, int Offset> INLINE vec<T, W> unzip(vec<T, W> a, vec<T, W> b) {
    return pick<T, W, 1, 2, 1, Offset>(a, b, lanes<W>());
}
template <class T, int W, bool High> INLINE vec<T, W> zip(vec<T, W> a, vec<T, W> b) {
    return pick<T, W, 2, 1, W, High ? W / 2 : 0>(a, b, lanes<W>());
}
// Four dot products of one sample, their lanes not yet all added up: W / 4 lanes each (at least one), in order.
template <class T, int W> struct Dots {
    static constexpr int kSize = W < 4 ? 4 : W;  // elements a sample
    static INLINE void put(T* to, const vec<T, W> dot[4], bool add) {
        if constexpr (W == 2) {
            const vec<T, W> ab = fold<T, 2, 1>(dot[0], dot[1]), cd = fold<T, 2, 1>(dot[2], dot[3]);
            store<T, W>(to, add ? ab + load<T, W>(to) : ab);
            store<T, W>(to + 2, add ? cd + load<T, W>(to + 2) : cd);
        } else {
            const vec<T, W> all =
                fold<T, W, W / 4>(fold<T, W, W / 2>(dot[0], dot[1]), fold<T, W, W / 2>(dot[2], dot[3]));
            store<T, W>(to, add ? all + load<T, W>(to) : all);
        }
    }
    // Adds up the lanes of `samples` samples, in place: four numbers a sample remain. May read and write up to
    // W / 4 - 1 samples more.
    static INLINE void finish(T* dots, int64_t samples) {
        if constexpr (W == 8) {
            for (int64_t i = 0; i < samples; i += 2)
                store<T, W>(dots + 4 * i, fold<T, W, 1>(load<T, W>(dots + W * i), load<T, W>(dots + W * i + W)));
        } else if constexpr (W == 16) {
            for (int64_t i = 0; i < samples; i += 4) {
                const T* d = dots + W * i;
                const vec<T, W> low = fold<T, W, 2>(load<T, W>(d), load<T, W>(d + W));
                const vec<T, W> high = fold<T, W, 2>(load<T, W>(d + 2 * W), load<T, W>(d + 3 * W));
                store<T, W>(dots + 4 * i, fold<T, W, 1>(low, high));
            }
        }
    }
};

// x * y + z in one rounding for float (without the instruction: the product is exact in double).
template <class T, int W> INLINE vec<T, W> multiply_add(vec<T, W> x, vec<T, W> y, vec<T, W> z) {
#if defined(__FMA__) || defined(__aarch64__)
    return x * y + z;  // contracted: -ffp-contract=fast
#else
    typedef vec<double, W> wide;
    wide sum = __builtin_convertvector(x, wide) * __builtin_convertvector(y, wide) + __builtin_convertvector(z, wide);
    return __builtin_convertvector(sum, vec<T, W>);
#endif
}

// ---- storage types -------------------------------------------------------------------------------------------------

struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };
template <class S> struct AccumulateOf { typedef S type; };
template <> struct AccumulateOf<Half> { typedef float type; };
template <> struct AccumulateOf<Brain> { typedef float type; };

template <class To, class From> INLINE To bit_cast(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}
INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(Brain x) { return bit_cast<float>((uint32_t)x.bits << 16); }
INLINE float widen(Half x) {
    // Exponents are rebased by a multiplication, which also makes subnormals right.
    uint32_t magnitude = (uint32_t)(x.bits & 0x7fff) << 13;
    uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
    uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
    return bit_cast<float>(bits | (uint32_t)(x.bits & 0x8000) << 16);
}
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(double x, double* to) { *to = x; }
INLINE void narrow(float x, Brain* to) {
    uint32_t bits = bit_cast<uint32_t>(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to->bits = (uint16_t)(x == x ? rounded : bits >> 16 | 0x40);
}
INLINE void narrow(float x, Half* to) {
    uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;  // adding 0.5 rounds
    uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
    uint32_t half = magnitude < 0x38800000u ? subnormal : magnitude < 0x477ff000u ? normal : special;
    to->bits = (uint16_t)(half | sign);
}

// ---- geometry ------------------------------------------------------------------------------------------------------

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct Arena {
    char* next;
    template <class T> T* take(int64_t n) {
        T* p = (T*)next;
        next += round_up(n * (int64_t)sizeof(T), 64);
        return p;
    }
};

template <class T> INLINE void copy(T* to, const T* from, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) memcpy(to + i, from + i, 4 * sizeof(T));
    for (; i < n; i++) to[i] = from[i];
}
INLINE void prefetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i);
}

// A block of queries and its samples. [2]: along x, along y.
template <class T> struct Block {
    static constexpr int W = kVectorBytes / sizeof(T);
    typedef vec<T, W> V;

    int64_t levels, points, samples;  // of one query, in the levels at work
    int64_t queries;                  // in a whole block
    int64_t *step_x, *step_y;         // per level: elements to the next column and the next row
    // The rest is per sample of the block.
    T *size[2], *limit[2], *second[2];  // the map's size; max(size - 2, 0); 1 where size > 1, else 0
    int32_t *start, *width;             // the level's first pixel, its width
    T *location, *attention;            // x, y, x, y, ...; weights
    T *offset[2], *near[2], *far[2];    // distance to the near pixel; hat of the near and of the far pixel
    int32_t* pixel;                     // the near pixel
    T* weight;                          // 4 a sample: attention times hats, for the four pixels in reading order
    T* dots;                            // backward: products of grad_output with the four pixels (Dots)
    T* rows;                            // (queries, padded channels): output or grad_output

    Block(Arena& arena, const wb_deform_attn_args& a, int64_t first, int64_t last, int64_t padded, bool backward) {
        levels = last - first, points = a.points, samples = levels * points;
        queries = samples ? kBlockSamples / samples : 1;
        if (queries < 1) queries = 1;
        const int64_t n = round_up(queries * samples, W);
        step_x = arena.take<int64_t>(levels), step_y = arena.take<int64_t>(levels);
        for (int d = 0; d < 2; d++) {
            size[d] = arena.take<T>(n), limit[d] = arena.take<T>(n), second[d] = arena.take<T>(n);
            offset[d] = arena.take<T>(n), near[d] = arena.take<T>(n), far[d] = arena.take<T>(n);
        }
        start = arena.take<int32_t>(n), width = arena.take<int32_t>(n), pixel = arena.take<int32_t>(n);
        location = arena.take<T>(2 * n), attention = arena.take<T>(n);
        weight = arena.take<T>(4 * n);
        dots = arena.take<T>(backward ? (W < 4 ? 4 : W) * n : 0);
        rows = arena.take<T>(queries * padded);
    }

    // Fills in what does not change from block to block; `stride` is the distance of two pixels in elements.
    void prepare(const wb_deform_attn_args& a, int64_t first, int64_t stride) {
        const int64_t n = round_up(queries * samples, W);
        for (int64_t i = 0; i < n; i++) {
            int64_t l = 0, begin = 0;
            for (; l < i % samples / points; l++) begin += a.shapes[2 * (first + l)] * a.shapes[2 * (first + l) + 1];
            const int64_t h = a.shapes[2 * (first + l)], w = a.shapes[2 * (first + l) + 1];
            step_x[l] = w > 1 ? stride : 0, step_y[l] = h > 1 ? w * stride : 0;
            size[0][i] = (T)w, size[1][i] = (T)h;
            limit[0][i] = (T)(w > 2 ? w - 2 : 0), limit[1][i] = (T)(h > 2 ? h - 2 : 0);
            second[0][i] = w > 1, second[1][i] = h > 1;
            start[i] = (int32_t)begin, width[i] = (int32_t)w;
            location[2 * i] = location[2 * i + 1] = attention[i] = 0;
        }
    }

    // Fetches the locations and weights of `count` queries, `stride` samples apart, and computes pixels and weights.
    template <bool Backward> void place(const T* locations, const T* weights, int64_t stride, int64_t count) {
        for (int64_t q = 0; q < count; q++) {
            const T *xy = locations + 2 * q * stride, *w = weights + q * stride;
            copy(location + 2 * q * samples, xy, 2 * samples);
            copy(attention + q * samples, w, samples);
            prefetch(xy + 2 * queries * stride, 2 * samples * sizeof(T));
            prefetch(w + queries * stride, samples * sizeof(T));
        }
        const V zero = {}, one = zero + 1, half = zero + (T)0.5;
        typedef vec<int32_t, W> index;
        for (int64_t i = 0; i < count * samples; i += W) {
            const V a = load<T, W>(location + 2 * i), b = load<T, W>(location + 2 * i + W);
            index cell[2];
            V hat0[2], hat1[2];
#pragma GCC unroll 2
            for (int d = 0; d < 2; d++) {
                const V at = d ? unzip<T, W, 1>(a, b) : unzip<T, W, 0>(a, b), extent = load<T, W>(size[d] + i);
                V x = multiply_add<T, W>(at, extent, -half);
                x = x > zero ? x : zero;  // NaN too
                const V most = load<T, W>(limit[d] + i);
                x = x < most ? x : most;
                cell[d] = __builtin_convertvector(x, index);
                // Once more from the location: exact to the last bit where the coordinate itself has lost some.
                const V t = multiply_add<T, W>(at, extent, -(__builtin_convertvector(cell[d], V) + half));
                const V below = one - (t < zero ? -t : t), above = one - (t < one ? one - t : t - one);
                hat0[d] = below > zero ? below : zero;
                hat1[d] = (above > zero ? above : zero) * load<T, W>(second[d] + i);
                if constexpr (Backward) {
                    store<T, W>(offset[d] + i, t);
                    store<T, W>(near[d] + i, hat0[d]);
                    store<T, W>(far[d] + i, hat1[d]);
                }
            }
            const index row = load<int32_t, W>(width + i) * cell[1];
            store<int32_t, W>(pixel + i, load<int32_t, W>(start + i) + row + cell[0]);
            const V w = load<T, W>(attention + i), top = w * hat0[1], bottom = w * hat1[1];
            const V w0 = top * hat0[0], w1 = top * hat1[0], w2 = bottom * hat0[0], w3 = bottom * hat1[0];
            const V low02 = zip<T, W, false>(w0, w2), low13 = zip<T, W, false>(w1, w3);
            const V high02 = zip<T, W, true>(w0, w2), high13 = zip<T, W, true>(w1, w3);
            store<T, W>(weight + 4 * i, zip<T, W, false>(low02, low13));
            store<T, W>(weight + 4 * i + W, zip<T, W, true>(low02, low13));
            store<T, W>(weight + 4 * i + 2 * W, zip<T, W, false>(high02, high13));
            store<T, W>(weight + 4 * i + 3 * W, zip<T, W, true>(high02, high13));
        }
    }

    // From the dots to the gradients of `count` queries' locations and weights.
    void finish(T* grad_locations, T* grad_weights, int64_t stride, int64_t count) {
        const V zero = {}, one = zero + 1, two = one + one;
        for (int64_t i = 0; i < count * samples; i += W) {
            const V a = load<T, W>(dots + 4 * i), b = load<T, W>(dots + 4 * i + W);
            const V c = load<T, W>(dots + 4 * i + 2 * W), d = load<T, W>(dots + 4 * i + 3 * W);
            const V ab = unzip<T, W, 0>(a, b), cd = unzip<T, W, 0>(c, d);
            const V ab1 = unzip<T, W, 1>(a, b), cd1 = unzip<T, W, 1>(c, d);
            const V d0 = unzip<T, W, 0>(ab, cd), d2 = unzip<T, W, 1>(ab, cd);
            const V d1 = unzip<T, W, 0>(ab1, cd1), d3 = unzip<T, W, 1>(ab1, cd1);
            const V w = load<T, W>(attention + i);
            V hat0[2], hat1[2], slope0[2], slope1[2];
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                hat0[k] = load<T, W>(near[k] + i), hat1[k] = load<T, W>(far[k] + i);
                // A hat's slope, to the right of a point: +1 on [-1, 0), -1 on [0, 1), else 0.
                const V t = load<T, W>(offset[k] + i), extent = w * load<T, W>(size[k] + i);
                const V from0 = t >= zero ? extent : zero, from1 = t >= one ? extent : zero;
                const V from_1 = t >= -one ? extent : zero, from2 = t >= two ? extent : zero;
                slope0[k] = from_1 - from0 - from0 + from1;
                slope1[k] = (from0 - from1 - from1 + from2) * load<T, W>(second[k] + i);
            }
            const V left = hat0[1] * d0 + hat1[1] * d2, right = hat0[1] * d1 + hat1[1] * d3;
            const V top = hat0[0] * d0 + hat1[0] * d1, bottom = hat0[0] * d2 + hat1[0] * d3;
            const V x = slope0[0] * left + slope1[0] * right, y = slope0[1] * top + slope1[1] * bottom;
            store<T, W>(attention + i, hat0[0] * left + hat1[0] * right);  // no longer needed: now the gradients
            store<T, W>(location + 2 * i, zip<T, W, false>(x, y));
            store<T, W>(location + 2 * i + W, zip<T, W, true>(x, y));
        }
        for (int64_t q = 0; q < count; q++) {
            copy(grad_locations + 2 * q * stride, location + 2 * q * samples, 2 * samples);
            copy(grad_weights + q * stride, attention + q * samples, samples);
        }
    }
};

// ---- channels ------------------------------------------------------------------------------------------------------

// How many partial sums a channel vector gets: enough to hide the latency of the multiply-adds, few enough to stay in
// registers.
constexpr int chains(int vectors) { return vectors * 4 <= kRegisters / 2 ? 4 : vectors * 2 <= kRegisters / 2 ? 2 : 1; }

template <class T, int W, int N>
INLINE void gather(const Block<T>& b, const T* base, int64_t stride, int64_t first, T* out) {
    constexpr int C = chains(N);
    vec<T, W> sum[C][N] = {};
    const T* weight = b.weight + 4 * first;
    const int32_t* pixel = b.pixel + first;
    for (int64_t l = 0; l < b.levels; l++) {
        const int64_t dx = b.step_x[l], dy = b.step_y[l];
        for (int64_t p = 0; p < b.points; p++, weight += 4) {
            const T* from = base + (int64_t)*pixel++ * stride;
            const T* corner[4] = {from, from + dx, from + dy, from + dy + dx};
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                vec<T, W> w = splat<T, W>(weight[c]);
#pragma GCC unroll 16
                for (int v = 0; v < N; v++) sum[c % C][v] += w * load<T, W>(corner[c] + v * W);
            }
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
        vec<T, W> total = sum[0][v];
#pragma GCC unroll 4
        for (int c = 1; c < C; c++) total += sum[c][v];
        store<T, W>(out + v * W, total);
    }
}

template <class T, int W, int N>
INLINE void scatter(
    const Block<T>& b, const T* base, T* grad_base, int64_t stride, int64_t first, const T* grad, bool add) {
    vec<T, W> g[N];
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) g[v] = load<T, W>(grad + v * W);
    const T* weight = b.weight + 4 * first;
    T* dots = b.dots + Dots<T, W>::kSize * first;
    const int32_t* pixel = b.pixel + first;
    for (int64_t l = 0; l < b.levels; l++) {
        const int64_t dx = b.step_x[l], dy = b.step_y[l], step[4] = {0, dx, dy, dy + dx};
        for (int64_t p = 0; p < b.points; p++, weight += 4, dots += Dots<T, W>::kSize) {
            const int64_t at = (int64_t)*pixel++ * stride;
            vec<T, W> dot[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const T* from = base + at + step[c];
                T* to = grad_base + at + step[c];
                vec<T, W> w = splat<T, W>(weight[c]);
#pragma GCC unroll 16
                for (int v = 0; v < N; v++) {
                    vec<T, W> x = load<T, W>(from + v * W);
                    dot[c] = v ? dot[c] + g[v] * x : g[v] * x;
                    store<T, W>(to + v * W, load<T, W>(to + v * W) + w * g[v]);
                }
            }
            Dots<T, W>::put(dots, dot, add);
        }
    }
}

// Rows of `channels` numbers between storage (rows `stride` apart) and accumulation type (`padded` apart, filled up
// with zeros). One pair of functions a storage type, so that the rest is compiled for the accumulation types alone.
template <class S> struct Rows {
    typedef typename AccumulateOf<S>::type T;
    static void read(
        T* to, const void* storage, int64_t first, int64_t rows, int64_t stride, int64_t channels, int64_t padded) {
        const S* from = (const S*)storage + first;
        for (int64_t r = 0; r < rows; r++, to += padded, from += stride) {
            for (int64_t c = 0; c < channels; c++) to[c] = widen(from[c]);
            for (int64_t c = channels; c < padded; c++) to[c] = 0;
        }
    }
    static void write(
        void* storage, int64_t first, const T* from, int64_t rows, int64_t stride, int64_t channels, int64_t padded) {
        S* to = (S*)storage + first;
        for (int64_t r = 0; r < rows; r++, from += padded, to += stride)
            for (int64_t c = 0; c < channels; c++) narrow(from[c], to + c);
    }
};
template <class T> struct Storage {
    void (*read)(T*, const void*, int64_t, int64_t, int64_t, int64_t, int64_t);
    void (*write)(void*, int64_t, const T*, int64_t, int64_t, int64_t, int64_t);
};
INLINE Storage<double> storage_of(const wb_deform_attn_args&, double) {
    return {Rows<double>::read, Rows<double>::write};
}
INLINE Storage<float> storage_of(const wb_deform_attn_args& a, float) {
    if (a.dtype == WB_FLOAT16) return {Rows<Half>::read, Rows<Half>::write};
    if (a.dtype == WB_BFLOAT16) return {Rows<Brain>::read, Rows<Brain>::write};
    return {Rows<float>::read, Rows<float>::write};
}

// Runs body(offset, integral_constant<N>) over the channels in steps of N vectors, N the largest power of two to fit.
template <int N, int W, class Body> INLINE void by_channels(int64_t padded, Body&& body) {
    int64_t c = 0;
    for (; c + N * W <= padded; c += N * W) body(c, std::integral_constant<int, N>{});
    if constexpr (N > 1) {
        if (c < padded) by_channels<N / 2, W>(padded - c, [&](int64_t o, auto n) { body(c + o, n); });
    }
}

constexpr int kMostVectors = kRegisters / 4;

template <class T, int W> struct Task {
    static int64_t padded(const wb_deform_attn_args& a) { return round_up(a.channels, W); }

    static size_t forward_bytes(const wb_deform_attn_args& a) {
        Arena arena{nullptr};
        Block<T> block(arena, a, 0, a.levels, padded(a), false);
        arena.take<T>(a.pixels * padded(a));
        return (size_t)arena.next;
    }
    static size_t backward_bytes(const wb_deform_attn_args& a, int64_t first, int64_t last) {
        Arena arena{nullptr};
        Block<T> block(arena, a, first, last, padded(a), true);
        int64_t pixels = 0;
        for (int64_t l = first; l < last; l++) pixels += a.shapes[2 * l] * a.shapes[2 * l + 1];
        arena.take<T>(pixels * padded(a)), arena.take<T>(pixels * padded(a));
        return (size_t)arena.next;
    }

    static void forward(
        const wb_deform_attn_args& a, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch) {
        const int64_t D = a.channels, P = padded(a), stride = a.heads * D;
        const Storage<T> storage = storage_of(a, T());
        Arena arena{(char*)scratch};
        Block<T> block(arena, a, 0, a.levels, P, false);
        block.prepare(a, 0, P);
        T* maps = arena.take<T>(a.pixels * P);
        storage.read(maps, a.value, batch * a.pixels * stride + head * D, a.pixels, stride, D, P);
        const int64_t samples = block.samples;
        for (int64_t q = first; q < last; q += block.queries) {
            const int64_t count = last - q < block.queries ? last - q : block.queries;
            const int64_t at = (batch * a.queries + q) * a.heads + head, sample = at * samples;
            block.template place<false>(
                (const T*)a.locations + 2 * sample, (const T*)a.weights + sample, a.heads * samples, count);
            by_channels<kMostVectors, W>(P, [&](int64_t c, auto n) {
                for (int64_t i = 0; i < count; i++)
                    gather<T, W, n.value>(block, maps + c, P, i * samples, block.rows + i * P + c);
            });
            storage.write(a.output, at * D, block.rows, count, stride, D, P);
        }
    }

    static void backward(
        const wb_deform_attn_args& a, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch) {
        const int64_t D = a.channels, P = padded(a), stride = a.heads * D;
        const Storage<T> storage = storage_of(a, T());
        Arena arena{(char*)scratch};
        Block<T> block(arena, a, first, last, P, true);
        block.prepare(a, first, P);
        int64_t begin = 0, pixels = 0;
        for (int64_t l = 0; l < last; l++) (l < first ? begin : pixels) += a.shapes[2 * l] * a.shapes[2 * l + 1];
        T *maps = arena.take<T>(pixels * P), *grads = arena.take<T>(pixels * P);
        const int64_t origin = (batch * a.pixels + begin) * stride + head * D;
        storage.read(maps, a.value, origin, pixels, stride, D, P);
        memset(grads, 0, pixels * P * sizeof(T));
        const int64_t all = a.levels * a.points, skip = first * a.points;  // samples of one query; those before ours
        for (int64_t q = 0; q < a.queries; q += block.queries) {
            const int64_t count = a.queries - q < block.queries ? a.queries - q : block.queries;
            const int64_t at = (batch * a.queries + q) * a.heads + head, sample = at * all + skip;
            block.template place<true>(
                (const T*)a.locations + 2 * sample, (const T*)a.weights + sample, a.heads * all, count);
            storage.read(block.rows, a.grad_output, at * D, count, stride, D, P);
            by_channels<kMostVectors, W>(P, [&](int64_t c, auto n) {
                for (int64_t i = 0; i < count; i++)
                    scatter<T, W, n.value>(
                        block, maps + c, grads + c, P, i * block.samples, block.rows + i * P + c, c > 0);
            });
            Dots<T, W>::finish(block.dots, count * block.samples);
            block.finish((T*)a.grad_locations + 2 * sample, (T*)a.grad_weights + sample, a.heads * all, count);
        }
        storage.write(a.grad_value, origin, grads, pixels, stride, D, P);
    }
};

// Calls f with the Task for the accumulation type and number of channels.
template <class F> INLINE auto with_task(const wb_deform_attn_args& a, F&& f) {
    constexpr int floats = kVectorBytes / 4, doubles = kVectorBytes / 8;
    if (a.dtype == WB_FLOAT64) return f(Task<double, doubles>());
    // Few channels: narrower vectors rather than padding.
    if constexpr (floats > 4) {
        if (a.channels * 2 <= floats) return f(Task<float, floats / 2>());
    }
    return f(Task<float, floats>());
}

size_t forward_bytes(const wb_deform_attn_args& a) {
    return with_task(a, [&](auto task) { return task.forward_bytes(a); });
}
size_t backward_bytes(const wb_deform_attn_args& a, int64_t first, int64_t last) {
    return with_task(a, [&](auto task) { return task.backward_bytes(a, first, last); });
}
void forward(const wb_deform_attn_args& a, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch) {
    with_task(a, [&](auto task) { task.forward(a, batch, head, first, last, scratch); });
}
void backward(const wb_deform_attn_args& a, int64_t batch, int64_t head, int64_t first, int64_t last, void* scratch) {
    with_task(a, [&](auto task) { task.backward(a, batch, head, first, last, scratch); });
}

}  // namespace

extern const Kernel WB_KERNEL;
const Kernel WB_KERNEL = {forward_bytes, backward_bytes, forward, backward};
