// Sums over rows, per channel, and what is done with them: batch norm, masked batch norm, group norm over large samples, gradients of biases.
//
// Layout: x is [samples, rows, channels], channels fastest; batch norm is one "sample" of all rows. A thread holds VECTOR neighbouring channels
// and walks over rows, so that what belongs to a channel stays in registers. Blocks are (lanes, rows) threads; the grid is (channel tiles,
// slabs or any number, samples). Kernels that sum write what each slab held to `partial` [samples, slabs, kinds, channels]; `finish_*` merge
// slabs in an order of their own, so that results do not depend on scheduling. Rows whose token is `padding` are left out where `tokens` is given.
// Operands of [rows, channels] lie on multiples of 4·VECTOR bytes, and channels are a multiple of VECTOR; others may lie anywhere.
// Reference: kernel.rs states the formulas; Chan, Golub, LeVeque 1979 for merged moments.
#include "common.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

struct alignas(4 * VECTOR) Lanes {
    float at[VECTOR];
};

constexpr int RUN = 8;                       // rows whose moments are made in two passes over registers
constexpr int BATCH = VECTOR == 1 ? 4 : 2;   // rows that are under way together where each is written
constexpr u32 COLUMNS = 32;                  // channels of a block that finishes

__device__ __forceinline__ bool counts(const float* tokens, float padding, u64 row) { return tokens == nullptr || tokens[row] != padding; }

__device__ __forceinline__ Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

__device__ __forceinline__ void store(float* to, const Lanes& value) { *reinterpret_cast<Lanes*>(to) = value; }

// γ or β of a channel, where there may be none.
__device__ __forceinline__ float either(const float* values, u32 channel, float otherwise) { return values != nullptr ? values[channel] : otherwise; }

// What a gate computes again: both must round alike.
__device__ __forceinline__ float normalized(float x, float mean, float scale, float shift) { return __fmaf_rn(x - mean, scale, shift); }

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

extern "C" {

// partial [samples, slabs, 4, channels].
__global__ void __launch_bounds__(256) moments(
    const float* __restrict__ x, const float* __restrict__ tokens, float padding, float* __restrict__ partial, u64 rows, u32 channels, u64 rows_a_slab
) {
    extern __shared__ double room[];
    Moments* kept = reinterpret_cast<Moments*>(room);
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    const float* own = x + blockIdx.z * rows * channels + channel;
    // Values are looked at from the first one, so that a mean far from zero takes no digits from distances.
    float count = 0.0f, pivot[VECTOR] = {}, mean[VECTOR] = {}, m2[VECTOR] = {};
    if (channel < channels) {
        for (u64 first = begin + threadIdx.y; first < end; first += (u64)RUN * blockDim.y) {
            Lanes values[RUN];
            bool there[RUN];
            float n = 0.0f;
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                const u64 row = first + (u64)r * blockDim.y;
                there[r] = row < end && counts(tokens, padding, row);
                values[r] = {};
                if (there[r]) values[r] = load(own + row * channels);
                n += there[r] ? 1.0f : 0.0f;
            }
            if (n == 0.0f) continue;
            if (count == 0.0f) {
#pragma unroll
                for (int r = RUN - 1; r >= 0; --r)
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) pivot[v] = there[r] ? values[r].at[v] : pivot[v];
            }
            const float inverse = 1.0f / n, share = n / (count + n);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float sum = 0.0f, squares = 0.0f;
#pragma unroll
                for (int r = 0; r < RUN; ++r) sum += there[r] ? values[r].at[v] - pivot[v] : 0.0f;
                const float centre = sum * inverse;
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
                    const float distance = there[r] ? values[r].at[v] - pivot[v] - centre : 0.0f;
                    squares += distance * distance;
                }
                const float delta = centre - mean[v];
                mean[v] += delta * share;
                m2[v] += squares + delta * delta * count * share;
            }
            count += n;
        }
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v] = {(double)pivot[v] + (double)mean[v], count, m2[v]};
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                Moments& mine = kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v];
                mine = merged(mine, kept[((threadIdx.y + step) * blockDim.x + lane) * VECTOR + v]);
            }
    }
    if (threadIdx.y == 0 && channel < channels) {
        float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 4 * channels + channel;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const Moments all = kept[lane * VECTOR + v];
            const float high = (float)all.mean;
            to[v] = all.count;
            to[channels + v] = high;
            to[2 * (u64)channels + v] = (float)(all.mean - (double)high);
            to[3 * (u64)channels + v] = all.m2;
        }
    }
}

// mean[c], biased variance[c] of one sample; count[0] where asked for. Zeros without any row.
__global__ void __launch_bounds__(1024) finish_statistics(
    const float* __restrict__ partial, u32 slabs, u32 channels, float* __restrict__ mean, float* __restrict__ variance, float* __restrict__ count
) {
    __shared__ Moments kept[32][COLUMNS];
    const u32 c = blockIdx.x * COLUMNS + threadIdx.x;
    Moments all = {0.0, 0.0f, 0.0f};
    if (c < channels)
#pragma unroll 4
        for (u32 s = threadIdx.y; s < slabs; s += blockDim.y) all = merged(all, read(partial + (u64)s * 4 * channels + c, channels));
    kept[threadIdx.y][threadIdx.x] = all;
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y)
            kept[threadIdx.y][threadIdx.x] = merged(kept[threadIdx.y][threadIdx.x], kept[threadIdx.y + step][threadIdx.x]);
    }
    if (threadIdx.y == 0 && c < channels) {
        all = kept[0][threadIdx.x];
        mean[c] = (float)all.mean;
        variance[c] = all.count > 0.0f ? all.m2 / all.count : 0.0f;
        if (c == 0 && count != nullptr) count[0] = all.count;
    }
}

// mean and rstd [samples, groups]; a block a (group, sample).
__global__ void __launch_bounds__(256) finish_groups(
    const float* __restrict__ partial, u32 slabs, u32 channels, u32 groups, float eps, float* __restrict__ mean, float* __restrict__ rstd
) {
    __shared__ Moments kept[256];
    const u32 width = channels / groups, group = blockIdx.x;
    const u64 sample = blockIdx.y;
    Moments all = {0.0, 0.0f, 0.0f};
    for (u32 i = threadIdx.x; i < slabs * width; i += blockDim.x)
        all = merged(all, read(partial + (sample * slabs + i / width) * 4 * channels + group * width + i % width, channels));
    kept[threadIdx.x] = all;
    for (u32 step = 1; step < blockDim.x; step *= 2) {
        __syncthreads();
        if (threadIdx.x % (2 * step) == 0 && threadIdx.x + step < blockDim.x) kept[threadIdx.x] = merged(kept[threadIdx.x], kept[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
        mean[sample * groups + group] = (float)kept[0].mean;
        rstd[sample * groups + group] = 1.0f / sqrtf(kept[0].m2 / kept[0].count + eps);
    }
}

__global__ void reciprocal_deviation(const float* __restrict__ variance, float* __restrict__ rstd, u32 n, float eps) {
    EACH(c, n) rstd[c] = 1.0f / sqrtf(variance[c] + eps);
}

__global__ void update_running(
    const float* __restrict__ mean, const float* __restrict__ variance, const float* __restrict__ count, float* __restrict__ running_mean,
    float* __restrict__ running_variance, i64* __restrict__ tracked, u32 n, float momentum
) {
    // One block: `tracked` is read by all of it before one thread writes it. A momentum below 0: 1/tracked.
    const float of = count[0];
    if (of == 0.0f) return;
    const i64 now = tracked[0] + 1;
    const float m = momentum < 0.0f ? (float)(1.0 / (double)now) : momentum;
    // One row has no unbiased variance, and keeps the biased one.
    const float unbiased = of > 1.0f ? of / (of - 1.0f) : 1.0f;
    for (u32 c = threadIdx.x; c < n; c += blockDim.x) {
        running_mean[c] = (1.0f - m) * running_mean[c] + m * mean[c];
        running_variance[c] = (1.0f - m) * running_variance[c] + m * (variance[c] * unbiased);
    }
    __syncthreads();
    if (threadIdx.x == 0) tracked[0] = now;
}

// y = γ·(x − mean)·rstd + β (+ shortcut), rectified or not; 0 in rows that don't count.
__global__ void __launch_bounds__(256) normalize(
    const float* __restrict__ x, const float* __restrict__ tokens, float padding, const float* __restrict__ mean, const float* __restrict__ rstd,
    const float* __restrict__ gamma, const float* __restrict__ beta, const float* __restrict__ shortcut, float* __restrict__ y, u64 rows, u32 channels, int relu
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= channels) return;
    float centre[VECTOR], scale[VECTOR], shift[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        centre[v] = mean[channel + v];
        scale[v] = __fmul_rn(rstd[channel + v], either(gamma, channel + v, 1.0f));
        shift[v] = either(beta, channel + v, 0.0f);
    }
    const u64 stride = (u64)gridDim.y * blockDim.y;
    for (u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y; first < rows; first += BATCH * stride) {
        Lanes from[BATCH], added[BATCH];
        bool there[BATCH];
#pragma unroll
        for (int r = 0; r < BATCH; ++r) {
            const u64 row = first + r * stride, at = row * channels + channel;
            there[r] = row < rows && counts(tokens, padding, row);
            if (there[r]) from[r] = load(x + at);
            if (there[r] && shortcut != nullptr) added[r] = load(shortcut + at);
        }
#pragma unroll
        for (int r = 0; r < BATCH; ++r) {
            const u64 row = first + r * stride;
            Lanes to = {};
            if (there[r])
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float value = normalized(from[r].at[v], centre[v], scale[v], shift[v]);
                    if (shortcut != nullptr) value = __fadd_rn(value, added[r].at[v]);
                    to.at[v] = rectified(value, relu);
                }
            if (row < rows) store(y + row * channels + channel, to);
        }
    }
}
}

// Σ g and Σ g·(x − mean) of a slab. `mean` is [samples, groups]; groups == channels is one for each channel. With `y`, d_y becomes 0 where y is
// not positive, and stays so; with `again_rstd`, it counts only where γ·(x − mean)·rstd + β is. g is d_y, times `factors` of the element if there are any.
__device__ __forceinline__ void sums(
    const float* __restrict__ x, float* __restrict__ d_y, const float* __restrict__ y, const float* __restrict__ factors, const float* __restrict__ tokens,
    float padding, const float* __restrict__ mean, const float* __restrict__ again_gamma, const float* __restrict__ again_beta,
    const float* __restrict__ again_rstd, float* __restrict__ partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab, float* shared
) {
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR, width = channels / groups;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows), base = blockIdx.z * rows * channels;
    float a[VECTOR] = {}, b[VECTOR] = {};
    if (channel < channels) {
        float centre[VECTOR], scale[VECTOR] = {}, shift[VECTOR] = {};
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            centre[v] = mean[blockIdx.z * groups + (channel + v) / width];
            if (again_rstd == nullptr) continue;
            scale[v] = __fmul_rn(again_rstd[channel + v], either(again_gamma, channel + v, 1.0f));
            shift[v] = either(again_beta, channel + v, 0.0f);
        }
        for (u64 first = begin + threadIdx.y; first < end; first += (u64)4 * blockDim.y) {
            Lanes from[4], slope[4], out[4];
            bool there[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const u64 row = first + (u64)r * blockDim.y, at = base + row * channels + channel;
                there[r] = row < end && counts(tokens, padding, row);
                if (!there[r]) continue;
                from[r] = load(x + at);
                slope[r] = load(d_y + at);
                if (y != nullptr) out[r] = load(y + at);
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                if (!there[r]) continue;
                const u64 place = (first + (u64)r * blockDim.y) * channels + channel;
                if (y != nullptr) {
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) slope[r].at[v] = out[r].at[v] > 0.0f ? slope[r].at[v] : 0.0f;
                    store(d_y + base + place, slope[r]);
                }
                Lanes factor;
                if (factors != nullptr) factor = load(factors + place);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float g = slope[r].at[v];
                    if (again_rstd != nullptr && !(normalized(from[r].at[v], centre[v], scale[v], shift[v]) > 0.0f)) g = 0.0f;
                    if (factors != nullptr) g = __fmul_rn(g, factor.at[v]);
                    a[v] = __fadd_rn(a[v], g);
                    b[v] = __fmaf_rn(g, from[r].at[v] - centre[v], b[v]);
                }
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

// Σ over slabs, in the order of a tree, of [slabs, length]: for the threads with threadIdx.y == 0.
__device__ __forceinline__ float slab_sum(const float* __restrict__ partial, u32 slabs, u64 length, u32 i, float (*kept)[COLUMNS + 1]) {
    float total = 0.0f;
    if (i < length)
#pragma unroll 4
        for (u32 s = threadIdx.y; s < slabs; s += blockDim.y) total += partial[s * length + i];
    kept[threadIdx.y][threadIdx.x] = total;
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y) kept[threadIdx.y][threadIdx.x] += kept[threadIdx.y + step][threadIdx.x];
    }
    return kept[0][threadIdx.x];
}

extern "C" {

// partial [samples, slabs, 2, channels]: Σ d_y and Σ d_y·(x − mean), with the gates of `sums`. With `y`, d_y is written.
__global__ void __launch_bounds__(256) backward_sums(
    const float* x, float* d_y, const float* y, const float* tokens, float padding, const float* mean, const float* again_gamma, const float* again_beta,
    const float* again_rstd, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
) {
    extern __shared__ float shared[];
    sums(x, d_y, y, nullptr, tokens, padding, mean, again_gamma, again_beta, again_rstd, partial, rows, channels, groups, rows_a_slab, shared);
}

// sums[0..c], sums[c..2c] of one sample.
__global__ void __launch_bounds__(1024) finish_sums(const float* __restrict__ partial, u32 slabs, u32 channels, float* __restrict__ sums) {
    __shared__ float kept[32][COLUMNS + 1];
    const u32 i = blockIdx.x * COLUMNS + threadIdx.x;
    const float total = slab_sum(partial, slabs, 2 * (u64)channels, i, kept);
    if (threadIdx.y == 0 && i < 2 * channels) sums[i] = total;
}

__global__ void backward_affine(
    const float* __restrict__ sums, const float* __restrict__ rstd, float* __restrict__ d_gamma, float* __restrict__ d_beta, u32 channels
) {
    EACH(c, channels) {
        if (d_beta != nullptr) d_beta[c] += sums[c];
        if (d_gamma != nullptr) d_gamma[c] += sums[channels + c] * rstd[c];
    }
}

__global__ void __launch_bounds__(256) backward_input(
    const float* __restrict__ x, const float* __restrict__ d_y, const float* __restrict__ tokens, float padding, const float* __restrict__ mean,
    const float* __restrict__ rstd, const float* __restrict__ gamma, const float* __restrict__ sums, const float* __restrict__ count,
    const float* __restrict__ again_gamma, const float* __restrict__ again_beta, const float* __restrict__ again_rstd, float* __restrict__ d_x, u64 rows,
    u32 channels, int accumulate
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= channels) return;
    const float n = count[0];
    float centre[VECTOR], factor[VECTOR], d_mean[VECTOR], projection[VECTOR], scale[VECTOR] = {}, shift[VECTOR] = {};
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const u32 c = channel + v;
        const float deviation = rstd[c];
        centre[v] = mean[c];
        factor[v] = deviation * either(gamma, c, 1.0f);
        d_mean[v] = sums[c] / n;
        projection[v] = deviation * deviation * (sums[channels + c] / n);
        if (again_rstd == nullptr) continue;
        scale[v] = __fmul_rn(again_rstd[c], either(again_gamma, c, 1.0f));
        shift[v] = either(again_beta, c, 0.0f);
    }
    const u64 stride = (u64)gridDim.y * blockDim.y;
    for (u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y; first < rows; first += BATCH * stride) {
        Lanes from[BATCH], slope[BATCH], before[BATCH];
        bool there[BATCH];
#pragma unroll
        for (int r = 0; r < BATCH; ++r) {
            const u64 row = first + r * stride, at = row * channels + channel;
            there[r] = row < rows && counts(tokens, padding, row);
            if (there[r]) {
                from[r] = load(x + at);
                slope[r] = load(d_y + at);
            }
            before[r] = {};
            if (row < rows && accumulate) before[r] = load(d_x + at);
        }
#pragma unroll
        for (int r = 0; r < BATCH; ++r) {
            const u64 row = first + r * stride;
            Lanes to = before[r];
            if (there[r])
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float value = slope[r].at[v];
                    if (again_rstd != nullptr && !(normalized(from[r].at[v], centre[v], scale[v], shift[v]) > 0.0f)) value = 0.0f;
                    const float gradient = __fmul_rn(factor[v], __fmaf_rn(centre[v] - from[r].at[v], projection[v], value - d_mean[v]));
                    to.at[v] = accumulate ? __fadd_rn(to.at[v], gradient) : gradient;
                }
            if (row < rows) store(d_x + row * channels + channel, to);
        }
    }
}

__global__ void __launch_bounds__(256) backward_eval(
    const float* __restrict__ d_y, const float* __restrict__ tokens, float padding, const float* __restrict__ rstd, const float* __restrict__ gamma,
    float* __restrict__ d_x, u64 rows, u32 channels, int accumulate
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= channels) return;
    float scale[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) scale[v] = rstd[channel + v] * either(gamma, channel + v, 1.0f);
    for (u64 row = (u64)blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += (u64)gridDim.y * blockDim.y) {
        const u64 at = row * channels + channel;
        Lanes to = {};
        if (accumulate) to = load(d_x + at);
        if (counts(tokens, padding, row)) {
            const Lanes slope = load(d_y + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) to.at[v] += slope.at[v] * scale[v];
        }
        store(d_x + at, to);
    }
}

// --- gradients of biases: Σ over rows ---
// partial [slabs, channels].
__global__ void __launch_bounds__(256) column_sums(const float* __restrict__ x, float* __restrict__ partial, u64 rows, u32 channels, u64 rows_a_slab) {
    extern __shared__ float shared[];
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    float total[VECTOR] = {};
    if (channel < channels)
        for (u64 first = begin + threadIdx.y; first < end; first += (u64)RUN * blockDim.y) {
            Lanes values[RUN];
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                const u64 row = first + (u64)r * blockDim.y;
                values[r] = {};
                if (row < end) values[r] = load(x + row * channels + channel);
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float run = 0.0f;
#pragma unroll
                for (int r = 0; r < RUN; ++r) run += values[r].at[v];
                total[v] += run;
            }
        }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) shared[(threadIdx.y * blockDim.x + lane) * VECTOR + v] = total[v];
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                shared[(threadIdx.y * blockDim.x + lane) * VECTOR + v] += shared[((threadIdx.y + step) * blockDim.x + lane) * VECTOR + v];
    }
    if (threadIdx.y == 0 && channel < channels)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) partial[(u64)blockIdx.y * channels + channel + v] = shared[lane * VECTOR + v];
}

// to[c] (+)= the sum over slabs.
__global__ void __launch_bounds__(1024) finish_column_sums(const float* __restrict__ partial, u32 slabs, u32 channels, float* __restrict__ to, int accumulate) {
    __shared__ float kept[32][COLUMNS + 1];
    const u32 c = blockIdx.x * COLUMNS + threadIdx.x;
    const float total = slab_sum(partial, slabs, channels, c, kept);
    if (threadIdx.y == 0 && c < channels) to[c] = accumulate ? to[c] + total : total;
}

// --- SyncBatchNorm ---
__global__ void sync_pack(
    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ count, float* __restrict__ packed, u32 channels
) {
    const float n = count[0];
    EACH(c, channels) {
        packed[c] = n > 0.0f ? mean[c] : 0.0f;
        packed[channels + c] = n > 0.0f ? rstd[c] : 0.0f;
        if (c == 0) packed[2 * (u64)channels] = n;
    }
}

// In rank order; variances come back from reciprocal deviations, which needs the digits of f64 where eps is most of what they hold.
__global__ void sync_merge(
    const float* __restrict__ gathered, u32 ranks, u32 channels, float eps, float* __restrict__ mean, float* __restrict__ variance, float* __restrict__ rstd,
    float* __restrict__ count
) {
    EACH(c, channels) {
        double n = 0.0, centre = 0.0, squares = 0.0;
        for (u32 r = 0; r < ranks; ++r) {
            const float* of = gathered + r * (2 * (u64)channels + 1);
            const double more = of[2 * (u64)channels];
            if (more == 0.0) continue;
            const double local = of[c], deviation = of[channels + c], own = fmax(1.0 / (deviation * deviation) - (double)eps, 0.0);
            squares += own * more + (centre - local) * (centre - local) * n * more / (n + more);
            centre = (centre * n + local * more) / (n + more);
            n += more;
        }
        const double found = n > 0.0 ? squares / n : 0.0;
        mean[c] = (float)centre;
        variance[c] = (float)found;
        rstd[c] = (float)(1.0 / sqrt(found + (double)eps));
        if (c == 0) count[0] = (float)n;
    }
}

// --- group norm over large samples: after `moments` and `finish_groups`, or `backward_sums` and `finish_group_sums` ---
// affine: 0 none, 1 per channel, 2 per element of a sample.
__global__ void __launch_bounds__(256) group_normalize(
    const float* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ gamma, const float* __restrict__ beta,
    const float* __restrict__ shortcut, float* __restrict__ y, u64 spatial, u32 channels, u32 groups, u64 batch, int affine, int relu
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, width = channels / groups;
    if (channel >= channels) return;
    const u64 stride = (u64)gridDim.y * blockDim.y;
    for (u64 sample = blockIdx.z; sample < batch; sample += gridDim.z) {
        float centre[VECTOR], scale[VECTOR], shift[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u64 group = sample * groups + (channel + v) / width;
            centre[v] = mean[group];
            scale[v] = affine == 1 ? __fmul_rn(rstd[group], gamma[channel + v]) : rstd[group];
            shift[v] = affine == 1 ? beta[channel + v] : 0.0f;
        }
        const u64 base = sample * spatial * channels;
        for (u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y; first < spatial; first += BATCH * stride) {
            Lanes from[BATCH], added[BATCH];
#pragma unroll
            for (int r = 0; r < BATCH; ++r) {
                const u64 row = first + r * stride, at = base + row * channels + channel;
                if (row < spatial) from[r] = load(x + at);
                if (row < spatial && shortcut != nullptr) added[r] = load(shortcut + at);
            }
#pragma unroll
            for (int r = 0; r < BATCH; ++r) {
                const u64 row = first + r * stride, place = row * channels + channel;
                if (row >= spatial) continue;
                Lanes to, factor = {}, offset = {};
                if (affine == 2) {
                    factor = load(gamma + place);
                    offset = load(beta + place);
                }
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float value = normalized(from[r].at[v], centre[v], scale[v], shift[v]);
                    if (affine == 2) value = __fmaf_rn(value, factor.at[v], offset.at[v]);
                    if (shortcut != nullptr) value = __fadd_rn(value, added[r].at[v]);
                    to.at[v] = rectified(value, relu);
                }
                store(y + base + place, to);
            }
        }
    }
}

// As `backward_sums` of γ·d_y, γ per element of a sample.
__global__ void __launch_bounds__(256) element_sums(
    const float* x, float* d_y, const float* y, const float* gamma, const float* mean, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
) {
    extern __shared__ float shared[];
    sums(x, d_y, y, gamma, nullptr, 0.0f, mean, nullptr, nullptr, nullptr, partial, rows, channels, groups, rows_a_slab, shared);
}

// Of each sample and group: sums [samples, groups, 2] of γ·(Σ d_y) and γ·(Σ d_y·(x − mean)), γ per channel or absent; a block a (group, sample).
__global__ void __launch_bounds__(1024) finish_group_sums(
    const float* __restrict__ partial, const float* __restrict__ gamma, u32 slabs, u32 channels, u32 groups, float* __restrict__ sums
) {
    __shared__ float shared[32];
    const u32 width = channels / groups, group = blockIdx.x;
    const u64 sample = blockIdx.y;
    float a = 0.0f, b = 0.0f;
    for (u32 i = threadIdx.x; i < slabs * width; i += blockDim.x) {
        const u32 c = group * width + i % width;
        const float* of = partial + (sample * slabs + i / width) * 2 * channels + c;
        const float factor = either(gamma, c, 1.0f);
        a += factor * of[0];
        b += factor * of[channels];
    }
    a = block_sum(a, shared);
    b = block_sum(b, shared);
    if (threadIdx.x == 0) {
        sums[(sample * groups + group) * 2] = a;
        sums[(sample * groups + group) * 2 + 1] = b;
    }
}

// d_gamma[c] += Σ_samples rstd·Σ d_y·(x − mean), d_beta[c] += Σ_samples Σ d_y: over samples and slabs in the order of a tree.
__global__ void __launch_bounds__(1024) group_affine(
    const float* __restrict__ partial, const float* __restrict__ rstd, u64 samples, u32 slabs, u32 channels, u32 groups, float* __restrict__ d_gamma,
    float* __restrict__ d_beta
) {
    __shared__ float2 kept[32][COLUMNS];
    const u32 c = blockIdx.x * COLUMNS + threadIdx.x, width = channels / groups;
    float gamma = 0.0f, beta = 0.0f;
    if (c < channels)
        for (u64 sample = threadIdx.y; sample < samples; sample += blockDim.y) {
            float a = 0.0f, b = 0.0f;
#pragma unroll 4
            for (u32 s = 0; s < slabs; ++s) {
                const float* of = partial + (sample * slabs + s) * 2 * channels + c;
                a += of[0];
                b += of[channels];
            }
            beta += a;
            gamma += b * rstd[sample * groups + c / width];
        }
    kept[threadIdx.y][threadIdx.x] = {gamma, beta};
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y) {
            kept[threadIdx.y][threadIdx.x].x += kept[threadIdx.y + step][threadIdx.x].x;
            kept[threadIdx.y][threadIdx.x].y += kept[threadIdx.y + step][threadIdx.x].y;
        }
    }
    if (threadIdx.y == 0 && c < channels) {
        if (d_gamma != nullptr) d_gamma[c] += kept[0][threadIdx.x].x;
        if (d_beta != nullptr) d_beta[c] += kept[0][threadIdx.x].y;
    }
}

// The same where γ and β are per element of a sample: a thread an element, over samples in order.
__global__ void element_affine(
    const float* __restrict__ x, const float* __restrict__ d_y, const float* __restrict__ mean, const float* __restrict__ rstd, u64 samples, u64 spatial,
    u32 channels, u32 groups, float* __restrict__ d_gamma, float* __restrict__ d_beta
) {
    const u64 size = spatial * channels;
    const u32 width = channels / groups;
    EACH(e, size) {
        const u32 group = split(e, channels).rest / width;
        float gamma = 0.0f, beta = 0.0f;
#pragma unroll 4
        for (u64 sample = 0; sample < samples; ++sample) {
            const float slope = d_y[sample * size + e];
            beta += slope;
            gamma += slope * ((x[sample * size + e] - mean[sample * groups + group]) * rstd[sample * groups + group]);
        }
        d_gamma[e] += gamma;
        d_beta[e] += beta;
    }
}
}

// dx (+)= rstd·[g − mean(g) − x̂·mean(g·x̂)], g = γ·d_y; `gamma` per channel or null, `factors` per element of a sample or null. With `y`, d_y counts
// only where y is positive.
__device__ __forceinline__ void group_input(
    const float* __restrict__ x, const float* __restrict__ d_y, const float* __restrict__ y, const float* __restrict__ gamma, const float* __restrict__ factors,
    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ sums, float* __restrict__ d_x, u64 spatial, u32 channels,
    u32 groups, u64 batch, int accumulate
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, width = channels / groups;
    if (channel >= channels) return;
    const float n = (float)spatial * (float)width;
    const u64 stride = (u64)gridDim.y * blockDim.y;
    for (u64 sample = blockIdx.z; sample < batch; sample += gridDim.z) {
        float centre[VECTOR], deviation[VECTOR], scale[VECTOR], d_mean[VECTOR], projection[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u64 group = sample * groups + (channel + v) / width;
            centre[v] = mean[group];
            deviation[v] = rstd[group];
            scale[v] = either(gamma, channel + v, 1.0f);
            d_mean[v] = sums[2 * group] / n;
            projection[v] = deviation[v] * deviation[v] * (sums[2 * group + 1] / n);
        }
        const u64 base = sample * spatial * channels;
        for (u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y; first < spatial; first += BATCH * stride) {
            Lanes from[BATCH], slope[BATCH], out[BATCH], before[BATCH];
#pragma unroll
            for (int r = 0; r < BATCH; ++r) {
                const u64 row = first + r * stride, at = base + row * channels + channel;
                if (row >= spatial) continue;
                from[r] = load(x + at);
                slope[r] = load(d_y + at);
                if (y != nullptr) out[r] = load(y + at);
                if (accumulate) before[r] = load(d_x + at);
            }
#pragma unroll
            for (int r = 0; r < BATCH; ++r) {
                const u64 row = first + r * stride, place = row * channels + channel;
                if (row >= spatial) continue;
                Lanes to, factor = {};
                if (factors != nullptr) factor = load(factors + place);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    const float open = y == nullptr || out[r].at[v] > 0.0f ? slope[r].at[v] : 0.0f;
                    const float g = __fmul_rn(factors != nullptr ? factor.at[v] : scale[v], open);
                    const float gradient = __fmul_rn(deviation[v], __fmaf_rn(centre[v] - from[r].at[v], projection[v], g - d_mean[v]));
                    to.at[v] = accumulate ? __fadd_rn(before[r].at[v], gradient) : gradient;
                }
                store(d_x + base + place, to);
            }
        }
    }
}

extern "C" {

__global__ void __launch_bounds__(256) group_backward_input(
    const float* x, const float* d_y, const float* y, const float* gamma, const float* mean, const float* rstd, const float* sums, float* d_x, u64 spatial,
    u32 channels, u32 groups, u64 batch, int accumulate
) {
    group_input(x, d_y, y, gamma, nullptr, mean, rstd, sums, d_x, spatial, channels, groups, batch, accumulate);
}

// γ per element of a sample.
__global__ void __launch_bounds__(256) element_backward_input(
    const float* x, const float* d_y, const float* y, const float* gamma, const float* mean, const float* rstd, const float* sums, float* d_x, u64 spatial,
    u32 channels, u32 groups, u64 batch, int accumulate
) {
    group_input(x, d_y, y, nullptr, gamma, mean, rstd, sums, d_x, spatial, channels, groups, batch, accumulate);
}
}
