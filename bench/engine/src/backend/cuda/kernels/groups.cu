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
    const value_t* x, value_t* d_y, const value_t* y, const float* gamma, const float* mean, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
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
