// Group norm over samples that are too large for a block, or whose groups are no single run: after `moments` of `columns.cu` and
// `finish_groups`, or after its `backward_sums` and `finish_group_sums`.
//
// Layout and reference: `columns.cuh`.
#include "columns.cuh"

extern "C" {

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

// affine: 0 none, 1 per channel, 2 per element of a sample.
__global__ void __launch_bounds__(256) group_normalize(
    const value_t* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ gamma, const float* __restrict__ beta,
    const value_t* __restrict__ shortcut, value_t* __restrict__ y, u64 spatial, u32 channels, u32 groups, u64 batch, int affine, int relu
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
        u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y;
        const value_t *from = x + base + channel, *extra = shortcut != nullptr ? shortcut + base + channel : nullptr;
        value_t* to = y + base + channel;
        if (affine != 2) {
            if (extra != nullptr && relu) normalize_batches<true, true>(from, extra, to, first, spatial, stride, channels, centre, scale, shift);
            else if (extra != nullptr) normalize_batches<true, false>(from, extra, to, first, spatial, stride, channels, centre, scale, shift);
            else if (relu) normalize_batches<false, true>(from, extra, to, first, spatial, stride, channels, centre, scale, shift);
            else normalize_batches<false, false>(from, extra, to, first, spatial, stride, channels, centre, scale, shift);
        }
        for (; first < spatial; first += stride) {
            const u64 at = first * channels;
            const Lanes value = load(from + at);
            Lanes row, added = {}, factor = {}, offset = {};
            if (extra != nullptr) added = load(extra + at);
            if (affine == 2) {
                factor = load(gamma + channel + at);
                offset = load(beta + channel + at);
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float all = normalized(value.at[v], centre[v], scale[v], shift[v]);
                if (affine == 2) all = __fmaf_rn(all, factor.at[v], offset.at[v]);
                if (extra != nullptr) all = __fadd_rn(all, added.at[v]);
                row.at[v] = rectified(all, relu);
            }
            store(to + at, row);
        }
    }
}

// As `backward_sums` of γ·d_y, γ per element of a sample.
__global__ void __launch_bounds__(256, 3) element_sums(
    const value_t* x, value_t* d_y, const value_t* y, const float* gamma, const float* mean, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
) {
    extern __shared__ float shared[];
    sums<false>(x, d_y, y, gamma, nullptr, 0.0f, mean, nullptr, nullptr, nullptr, partial, rows, channels, groups, rows_a_slab, shared);
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
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, const float* __restrict__ mean, const float* __restrict__ rstd, u64 samples, u64 spatial,
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

// What the gradient of an input takes of its channel.
struct OfChannel {
    float centre[VECTOR], deviation[VECTOR], scale[VECTOR], d_mean[VECTOR], projection[VECTOR];
};

// A row of `group_input`. `factor`: γ of each element, else that of the channel. With `out`, slopes count only where it is positive; with `before`,
// the gradient is added to it.
__device__ __forceinline__ Lanes group_row(const Lanes& from, const Lanes& slope, const Lanes* out, const Lanes* factor, const Lanes* before, const OfChannel& of) {
    Lanes to;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const float open = out == nullptr || out->at[v] > 0.0f ? slope.at[v] : 0.0f;
        const float g = __fmul_rn(factor != nullptr ? factor->at[v] : of.scale[v], open);
        const float gradient = __fmul_rn(of.deviation[v], __fmaf_rn(of.centre[v] - from.at[v], of.projection[v], g - of.d_mean[v]));
        to.at[v] = before != nullptr ? __fadd_rn(before->at[v], gradient) : gradient;
    }
    return to;
}

// All batches of rows of a sample that are whole, from `first` on, which is moved behind them.
template <bool GATED, bool ACCUMULATE>
__device__ __forceinline__ void group_batches(
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, const value_t* __restrict__ y, value_t* __restrict__ d_x, u64& first, u64 rows, u64 stride,
    u32 channels, const OfChannel& of
) {
    const u64 step = stride * channels;
    u64 at = first * channels;
    for (; first + (BATCH - 1) * stride < rows; first += BATCH * stride, at += BATCH * step) {
        Lanes from[BATCH], slope[BATCH], out[BATCH], before[BATCH];
        load_rows(from, x + at, step);
        load_rows(slope, d_y + at, step);
        if (GATED) load_rows(out, y + at, step);
        if (ACCUMULATE) load_rows(before, d_x + at, step);
#pragma unroll
        for (int r = 0; r < BATCH; ++r)
            store(d_x + at + r * step, group_row(from[r], slope[r], GATED ? &out[r] : nullptr, nullptr, ACCUMULATE ? &before[r] : nullptr, of));
    }
}

// dx (+)= rstd·[g − mean(g) − x̂·mean(g·x̂)], g = γ·d_y; `gamma` per channel or null, `factors` per element of a sample or null. With `y`, d_y counts
// only where y is positive.
__device__ __forceinline__ void group_input(
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, const value_t* __restrict__ y, const float* __restrict__ gamma, const float* __restrict__ factors,
    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ sums, value_t* __restrict__ d_x, u64 spatial, u32 channels,
    u32 groups, u64 batch, int accumulate
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, width = channels / groups;
    if (channel >= channels) return;
    const float n = (float)spatial * (float)width;
    const u64 stride = (u64)gridDim.y * blockDim.y;
    for (u64 sample = blockIdx.z; sample < batch; sample += gridDim.z) {
        OfChannel of;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u64 group = sample * groups + (channel + v) / width;
            of.centre[v] = mean[group];
            of.deviation[v] = rstd[group];
            of.scale[v] = either(gamma, channel + v, 1.0f);
            of.d_mean[v] = sums[2 * group] / n;
            of.projection[v] = of.deviation[v] * of.deviation[v] * (sums[2 * group + 1] / n);
        }
        const u64 base = sample * spatial * channels + channel;
        const value_t *from = x + base, *slope = d_y + base, *out = y != nullptr ? y + base : nullptr;
        value_t* to = d_x + base;
        u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y;
        if (factors == nullptr) {
            if (out != nullptr && accumulate) group_batches<true, true>(from, slope, out, to, first, spatial, stride, channels, of);
            else if (out != nullptr) group_batches<true, false>(from, slope, out, to, first, spatial, stride, channels, of);
            else if (accumulate) group_batches<false, true>(from, slope, out, to, first, spatial, stride, channels, of);
            else group_batches<false, false>(from, slope, out, to, first, spatial, stride, channels, of);
        }
        for (; first < spatial; first += stride) {
            const u64 at = first * channels;
            Lanes before = {}, gate = {}, factor = {};
            if (accumulate) before = load(to + at);
            if (out != nullptr) gate = load(out + at);
            if (factors != nullptr) factor = load(factors + channel + at);
            const Lanes row = group_row(
                load(from + at), load(slope + at), out != nullptr ? &gate : nullptr, factors != nullptr ? &factor : nullptr, accumulate ? &before : nullptr, of
            );
            store(to + at, row);
        }
    }
}

extern "C" {

__global__ void __launch_bounds__(256) group_backward_input(
    const value_t* x, const value_t* d_y, const value_t* y, const float* gamma, const float* mean, const float* rstd, const float* sums, value_t* d_x, u64 spatial,
    u32 channels, u32 groups, u64 batch, int accumulate
) {
    group_input(x, d_y, y, gamma, nullptr, mean, rstd, sums, d_x, spatial, channels, groups, batch, accumulate);
}

// γ per element of a sample.
__global__ void __launch_bounds__(256) element_backward_input(
    const value_t* x, const value_t* d_y, const value_t* y, const float* gamma, const float* mean, const float* rstd, const float* sums, value_t* d_x, u64 spatial,
    u32 channels, u32 groups, u64 batch, int accumulate
) {
    group_input(x, d_y, y, nullptr, gamma, mean, rstd, sums, d_x, spatial, channels, groups, batch, accumulate);
}
}
