// What the kernels that sum over rows, per channel, share: how a thread holds channels, moments and their merging, the sums of a backward.
//
// Layout: x is [samples, rows, channels], channels fastest; batch norm is one "sample" of all rows. A thread holds VECTOR neighbouring channels
// and walks over rows, so that what belongs to a channel stays in registers. Blocks are (lanes, rows) threads; the grid is (channel tiles,
// slabs or any number, samples). Kernels that sum write what each slab held to `partial` [samples, slabs, kinds, channels]; `finish_*` merge
// slabs in an order of their own, so that results do not depend on scheduling. Rows whose token is `padding` are left out where `tokens` is given.
// Operands of [rows, channels] lie on multiples of VECTOR of their elements, and channels are a multiple of VECTOR; others may lie anywhere.
// What is loaded and stored as `Lanes` is computed with in floats, whatever it is in memory.
// Reference: kernel.rs states the formulas; Chan, Golub, LeVeque 1979 for merged moments.
#pragma once
#include "common.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

struct alignas(4 * VECTOR) Lanes {
    float at[VECTOR];
};

constexpr int BATCH = VECTOR == 1 || sizeof(value_t) == 2 ? 4 : 2;   // rows that are under way together where each is written
constexpr u32 COLUMNS = 32;                  // channels of a block that finishes

__device__ __forceinline__ bool counts(const float* tokens, float padding, u64 row) { return tokens == nullptr || tokens[row] != padding; }

__device__ __forceinline__ Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

__device__ __forceinline__ void store(float* to, const Lanes& value) { *reinterpret_cast<Lanes*>(to) = value; }

struct alignas(2 * VECTOR) Bf16Lanes {
    Bf16 at[VECTOR];
};

__device__ __forceinline__ Lanes load(const Bf16* from) {
    const Bf16Lanes narrow = *reinterpret_cast<const Bf16Lanes*>(from);
    Lanes wide;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) wide.at[v] = narrow.at[v];
    return wide;
}

__device__ __forceinline__ void store(Bf16* to, const Lanes& value) {
    Bf16Lanes narrow;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) narrow.at[v] = value.at[v];
    *reinterpret_cast<Bf16Lanes*>(to) = narrow;
}

// N rows, each `step` elements after the one before. Most rows come in such batches, all there and all counting: what asks of each whether it is there, and
// where it lies, takes more instructions than what is computed, and with them more time than the memory does.
template <int N>
__device__ __forceinline__ void load_rows(Lanes (&to)[N], const value_t* from, u64 step) {
#pragma unroll
    for (int r = 0; r < N; ++r) to[r] = load(from + r * step);
}

// γ or β of a channel, where there may be none.
__device__ __forceinline__ float either(const float* values, u32 channel, float otherwise) { return values != nullptr ? values[channel] : otherwise; }

// What a gate computes again: both must round alike.
__device__ __forceinline__ float normalized(float x, float mean, float scale, float shift) { return __fmaf_rn(x - mean, scale, shift); }

// y = γ·(x − mean)·rstd + β (+ shortcut) of a row; `added` is its shortcut, if there is one.
__device__ __forceinline__ Lanes normalized_row(
    const Lanes& from, const Lanes* added, const float (&centre)[VECTOR], const float (&scale)[VECTOR], const float (&shift)[VECTOR], int relu
) {
    Lanes to;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        float value = normalized(from.at[v], centre[v], scale[v], shift[v]);
        if (added != nullptr) value = __fadd_rn(value, added->at[v]);
        to.at[v] = rectified(value, relu);
    }
    return to;
}

// All batches of rows that are whole, from `first` on, which is moved behind them.
template <bool SHORTCUT, bool RELU>
__device__ __forceinline__ void normalize_batches(
    const value_t* __restrict__ x, const value_t* __restrict__ shortcut, value_t* __restrict__ y, u64& first, u64 rows, u64 stride, u32 channels,
    const float (&centre)[VECTOR], const float (&scale)[VECTOR], const float (&shift)[VECTOR]
) {
    const u64 step = stride * channels;
    u64 at = first * channels;
    for (; first + (BATCH - 1) * stride < rows; first += BATCH * stride, at += BATCH * step) {
        Lanes from[BATCH], added[BATCH];
        load_rows(from, x + at, step);
        if (SHORTCUT) load_rows(added, shortcut + at, step);
#pragma unroll
        for (int r = 0; r < BATCH; ++r) store(y + at + r * step, normalized_row(from[r], SHORTCUT ? &added[r] : nullptr, centre, scale, shift, RELU));
    }
}

// Number, sum of squared distances from the mean, and the mean, whose digits the distances need where it is far from zero.
struct Moments {
    double mean;
    float count, m2;
};

__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    if (a.count == 0.0f) return b;
    const float count = a.count + b.count, share = b.count / count;
    const double delta = b.mean - a.mean;
    return {a.mean + delta * share, count, a.m2 + b.m2 + (float)(delta * delta) * a.count * share};
}

// Kinds of `partial`: count, mean, what the mean's rounding left, m2.
__device__ __forceinline__ Moments read(const float* of, u32 channels) {
    return {(double)of[channels] + (double)of[2 * (u64)channels], of[0], of[3 * (u64)channels]};
}

// A row's part of `sums`: its values, its slopes and, with `factor`, their factors. AGAIN: gates are computed again.
template <bool AGAIN>
__device__ __forceinline__ void add_slope(
    float (&a)[VECTOR], float (&b)[VECTOR], const Lanes& from, const Lanes& slope, const Lanes* factor, const float (&centre)[VECTOR], const float (&scale)[VECTOR],
    const float (&shift)[VECTOR]
) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        float g = slope.at[v];
        if (AGAIN && !(normalized(from.at[v], centre[v], scale[v], shift[v]) > 0.0f)) g = 0.0f;
        if (factor != nullptr) g = __fmul_rn(g, factor->at[v]);
        a[v] = __fadd_rn(a[v], g);
        b[v] = __fmaf_rn(g, from.at[v] - centre[v], b[v]);
    }
}

// All batches of rows of a slab that are whole, from `first` on, which is moved behind them. GATED: d_y becomes 0 where y is not positive.
template <int N, bool AGAIN, bool GATED>
__device__ __forceinline__ void sum_batches(
    float (&a)[VECTOR], float (&b)[VECTOR], const value_t* __restrict__ x, value_t* __restrict__ d_y, const value_t* __restrict__ y, u64& first, u64 end, u32 channels,
    const float (&centre)[VECTOR], const float (&scale)[VECTOR], const float (&shift)[VECTOR]
) {
    const u64 step = (u64)blockDim.y * channels;
    u64 at = first * channels;
    for (; first + (N - 1) * (u64)blockDim.y < end; first += (u64)N * blockDim.y, at += N * step) {
        Lanes from[N], slope[N], out[N];
        load_rows(from, x + at, step);
        load_rows(slope, d_y + at, step);
        if (GATED) load_rows(out, y + at, step);
#pragma unroll
        for (int r = 0; r < N; ++r) {
            if (GATED) {
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) slope[r].at[v] = out[r].at[v] > 0.0f ? slope[r].at[v] : 0.0f;
                store(d_y + at + r * step, slope[r]);
            }
            add_slope<AGAIN>(a, b, from[r], slope[r], nullptr, centre, scale, shift);
        }
    }
}

// Σ g and Σ g·(x − mean) of a slab. `mean` is [samples, groups]; groups == channels is one for each channel. With `y`, d_y becomes 0 where y is
// not positive, and stays so; with AGAIN, it counts only where γ·(x − mean)·rstd + β is. g is d_y, times `factors` of the element if there are any.
template <bool AGAIN>
__device__ __forceinline__ void sums(
    const value_t* __restrict__ x, value_t* __restrict__ d_y, const value_t* __restrict__ y, const float* __restrict__ factors, const float* __restrict__ tokens,
    float padding, const float* __restrict__ mean, const float* __restrict__ again_gamma, const float* __restrict__ again_beta,
    const float* __restrict__ again_rstd, float* __restrict__ partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab, float* shared
) {
    constexpr int SUMMED = 4;  // rows under way together
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR, width = channels / groups;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows), base = blockIdx.z * rows * channels;
    float a[VECTOR] = {}, b[VECTOR] = {};
    if (channel < channels) {
        float centre[VECTOR], scale[VECTOR] = {}, shift[VECTOR] = {};
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            centre[v] = mean[blockIdx.z * groups + (channel + v) / width];
            if (!AGAIN) continue;
            scale[v] = __fmul_rn(again_rstd[channel + v], either(again_gamma, channel + v, 1.0f));
            shift[v] = either(again_beta, channel + v, 0.0f);
        }
        const u64 batch = (u64)SUMMED * blockDim.y, own = base + channel;
        u64 first = begin + threadIdx.y;
        if (factors == nullptr && tokens == nullptr) {
            if (y != nullptr) sum_batches<SUMMED, AGAIN, true>(a, b, x + own, d_y + own, y + own, first, end, channels, centre, scale, shift);
            else sum_batches<SUMMED, AGAIN, false>(a, b, x + own, d_y + own, nullptr, first, end, channels, centre, scale, shift);
        }
        for (; first < end; first += batch) {
            Lanes from[SUMMED], slope[SUMMED], out[SUMMED];
            bool there[SUMMED];
#pragma unroll
            for (int r = 0; r < SUMMED; ++r) {
                const u64 row = first + (u64)r * blockDim.y, at = base + row * channels + channel;
                there[r] = row < end && counts(tokens, padding, row);
                if (!there[r]) continue;
                from[r] = load(x + at);
                slope[r] = load(d_y + at);
                if (y != nullptr) out[r] = load(y + at);
            }
#pragma unroll
            for (int r = 0; r < SUMMED; ++r) {
                if (!there[r]) continue;
                const u64 place = (first + (u64)r * blockDim.y) * channels + channel;
                if (y != nullptr) {
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) slope[r].at[v] = out[r].at[v] > 0.0f ? slope[r].at[v] : 0.0f;
                    store(d_y + base + place, slope[r]);
                }
                Lanes factor;
                if (factors != nullptr) factor = load(factors + place);
                add_slope<AGAIN>(a, b, from[r], slope[r], factors != nullptr ? &factor : nullptr, centre, scale, shift);
            }
        }
    }
    float2* kept = reinterpret_cast<float2*>(shared);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v] = {a[v], b[v]};
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float2& mine = kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v];
                const float2 other = kept[((threadIdx.y + step) * blockDim.x + lane) * VECTOR + v];
                mine = {mine.x + other.x, mine.y + other.y};
            }
    }
    if (threadIdx.y == 0 && channel < channels) {
        float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels + channel;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            to[v] = kept[lane * VECTOR + v].x;
            to[channels + v] = kept[lane * VECTOR + v].y;
        }
    }
}
