// Sums over rows, per channel, and what is done with them: batch norm, masked batch norm, and group norm over large samples.
//
// Layout: x is [samples, rows, channels], channels fastest; batch norm is one "sample" of all rows. A block has (lanes, rows) threads, a lane
// holds VECTOR channels; the grid is (channel tiles, slabs, samples). Each block writes what it found of its slab to `partial`
// [samples, slabs, kinds, channels]; `finish_*` merge slabs in their order, so that results do not depend on scheduling.
// Rows whose token is `padding` are left out where `tokens` is given.
// Reference: kernel.rs states the formulas; Chan, Golub, LeVeque 1979.
#include "common.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

struct alignas(4 * VECTOR) Lanes {
    float at[VECTOR];
};

constexpr int RUN = 8;  // rows whose moments are made in two passes over registers

__device__ __forceinline__ bool counts(const float* tokens, float padding, u64 row) { return tokens == nullptr || tokens[row] != padding; }

extern "C" {

// partial [samples, slabs, 3, channels]: count, mean, m2.
__global__ void moments(const float* x, const float* tokens, float padding, float* partial, u64 rows, u32 channels, u64 rows_a_slab) {
    extern __shared__ float shared[];
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    const float* own = x + blockIdx.z * rows * channels;
    Moments found[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) found[v] = {0.0f, 0.0f, 0.0f};
    if (channel < channels) {
        for (u64 first = begin + threadIdx.y; first < end; first += (u64)RUN * blockDim.y) {
            Lanes values[RUN];
            bool there[RUN];
            float n = 0.0f;
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                const u64 row = first + (u64)r * blockDim.y;
                there[r] = row < end && counts(tokens, padding, row);
                if (there[r]) values[r] = *reinterpret_cast<const Lanes*>(own + row * channels + channel);
                n += there[r];
            }
            if (n == 0.0f) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float sum = 0.0f, m2 = 0.0f;
#pragma unroll
                for (int r = 0; r < RUN; ++r) sum += there[r] ? values[r].at[v] : 0.0f;
                const float mean = sum / n;
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
                    const float distance = there[r] ? values[r].at[v] - mean : 0.0f;
                    m2 += distance * distance;
                }
                found[v] = merged(found[v], {n, mean, m2});
            }
        }
    }
    // Threads of a lane, in order of their rows.
    Moments* kept = reinterpret_cast<Moments*>(shared);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v] = found[v];
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 3 * channels + channel;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            Moments all = found[v];
            for (u32 y = 1; y < blockDim.y; ++y) all = merged(all, kept[(y * blockDim.x + lane) * VECTOR + v]);
            to[v] = all.count;
            to[channels + v] = all.mean;
            to[2 * channels + v] = all.m2;
        }
    }
}

// mean[c], biased variance[c] of one sample; count[0] where asked for. Zeros without any row.
__global__ void finish_statistics(const float* partial, u32 slabs, u32 channels, float* mean, float* variance, float* count) {
    EACH(c, channels) {
        Moments all = {0.0f, 0.0f, 0.0f};
        for (u32 s = 0; s < slabs; ++s) {
            const float* of = partial + (u64)s * 3 * channels + c;
            all = merged(all, {of[0], of[channels], of[2 * channels]});
        }
        mean[c] = all.mean;
        variance[c] = all.count > 0.0f ? all.m2 / all.count : 0.0f;
        if (c == 0 && count != nullptr) count[0] = all.count;
    }
}

// mean and rstd [samples, groups]; a block a (group, sample).
__global__ void finish_groups(const float* partial, u32 slabs, u32 channels, u32 groups, float eps, float* mean, float* rstd) {
    __shared__ Moments kept[256];
    const u32 width = channels / groups, group = blockIdx.x;
    const u64 sample = blockIdx.y;
    Moments all = {0.0f, 0.0f, 0.0f};
    for (u32 i = threadIdx.x; i < slabs * width; i += blockDim.x) {
        const float* of = partial + (sample * slabs + i / width) * 3 * channels + group * width + i % width;
        all = merged(all, {of[0], of[channels], of[2 * channels]});
    }
    kept[threadIdx.x] = all;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) kept[threadIdx.x] = merged(kept[threadIdx.x], kept[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        mean[sample * groups + group] = kept[0].mean;
        rstd[sample * groups + group] = 1.0f / sqrtf(kept[0].m2 / kept[0].count + eps);
    }
}

__global__ void reciprocal_deviation(const float* variance, float* rstd, u32 n, float eps) { EACH(c, n) rstd[c] = 1.0f / sqrtf(variance[c] + eps); }

__global__ void update_running(
    const float* mean, const float* variance, const float* count, float* running_mean, float* running_variance, i64* tracked, u32 n, float momentum
) {
    // One block: `tracked` is read by all of it before one thread writes it. A momentum below 0: 1/tracked.
    const float of = count[0];
    if (of == 0.0f) return;
    const i64 now = tracked[0] + 1;
    const float m = momentum < 0.0f ? (float)(1.0 / (double)now) : momentum;
    for (u32 c = threadIdx.x; c < n; c += blockDim.x) {
        running_mean[c] = (1.0f - m) * running_mean[c] + m * mean[c];
        running_variance[c] = (1.0f - m) * running_variance[c] + m * (variance[c] * (of / (of - 1.0f)));
    }
    __syncthreads();
    if (threadIdx.x == 0) tracked[0] = now;
}

// y = γ·(x − mean)·rstd + β (+ shortcut), rectified or not; 0 in rows that don't count.
__global__ void normalize(
    const float* x, const float* tokens, float padding, const float* mean, const float* rstd, const float* gamma, const float* beta, const float* shortcut,
    float* y, u64 rows, u32 channels, int relu
) {
    const u32 tiles = channels / VECTOR;
    EACH(i, rows * tiles) {
        const u64 row = i / tiles;
        const u32 channel = (u32)(i % tiles) * VECTOR;
        const u64 at = row * channels + channel;
        Lanes to;
        if (counts(tokens, padding, row)) {
            const Lanes from = *reinterpret_cast<const Lanes*>(x + at);
            Lanes added = {};
            if (shortcut != nullptr) added = *reinterpret_cast<const Lanes*>(shortcut + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const u32 c = channel + v;
                const float factor = rstd[c] * (gamma ? gamma[c] : 1.0f);
                const float value = (from.at[v] - mean[c]) * factor + (beta ? beta[c] : 0.0f) + added.at[v];
                to.at[v] = relu && value < 0.0f ? 0.0f : value;
            }
        } else {
            to = {};
        }
        *reinterpret_cast<Lanes*>(y + at) = to;
    }
}

// partial [samples, slabs, 2, channels]: Σ d_y and Σ d_y·(x − mean), mean [samples, groups] or per channel (groups == channels of one sample).
// With `y`, d_y counts only where y is positive; with `again_rstd`, where γ·(x − mean)·rstd + β is.
__global__ void backward_sums(
    const float* x, const float* d_y, const float* y, const float* tokens, float padding, const float* mean, const float* again_gamma, const float* again_beta,
    const float* again_rstd, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
) {
    extern __shared__ float shared[];
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR, width = channels / groups;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows), base = blockIdx.z * rows * channels;
    float first[VECTOR] = {}, second[VECTOR] = {};
    if (channel < channels) {
        float centre[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) centre[v] = mean[blockIdx.z * groups + (channel + v) / width];
#pragma unroll 4
        for (u64 row = begin + threadIdx.y; row < end; row += blockDim.y) {
            if (!counts(tokens, padding, row)) continue;
            const u64 at = base + row * channels + channel;
            const Lanes from = *reinterpret_cast<const Lanes*>(x + at);
            const Lanes slope = *reinterpret_cast<const Lanes*>(d_y + at);
            Lanes out = {};
            if (y != nullptr) out = *reinterpret_cast<const Lanes*>(y + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const u32 c = channel + v;
                const float distance = from.at[v] - centre[v];
                bool open = y == nullptr || out.at[v] > 0.0f;
                if (again_rstd != nullptr)
                    open = distance * (again_rstd[c] * (again_gamma ? again_gamma[c] : 1.0f)) + (again_beta ? again_beta[c] : 0.0f) > 0.0f;
                const float value = open ? slope.at[v] : 0.0f;
                first[v] += value;
                second[v] += value * distance;
            }
        }
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        float* kept = shared + ((threadIdx.y * blockDim.x + lane) * VECTOR + v) * 2;
        kept[0] = first[v];
        kept[1] = second[v];
    }
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels + channel;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            float a = first[v], b = second[v];
            for (u32 r = 1; r < blockDim.y; ++r) {
                const float* kept = shared + ((r * blockDim.x + lane) * VECTOR + v) * 2;
                a += kept[0];
                b += kept[1];
            }
            to[v] = a;
            to[channels + v] = b;
        }
    }
}

// sums[0..c], sums[c..2c] of one sample.
__global__ void finish_sums(const float* partial, u32 slabs, u32 channels, float* sums) {
    EACH(i, 2 * channels) {
        float total = 0.0f;
        for (u32 s = 0; s < slabs; ++s) total += partial[(u64)s * 2 * channels + i];
        sums[i] = total;
    }
}

__global__ void backward_affine(const float* sums, const float* rstd, float* d_gamma, float* d_beta, u32 channels) {
    EACH(c, channels) {
        if (d_beta != nullptr) d_beta[c] += sums[c];
        if (d_gamma != nullptr) d_gamma[c] += sums[channels + c] * rstd[c];
    }
}

__global__ void backward_input(
    const float* x, const float* d_y, const float* tokens, float padding, const float* mean, const float* rstd, const float* gamma, const float* sums,
    const float* count, const float* again_gamma, const float* again_beta, const float* again_rstd, float* d_x, u64 rows, u32 channels, int accumulate
) {
    const u32 tiles = channels / VECTOR;
    const float one = 1.0f / count[0];
    EACH(i, rows * tiles) {
        const u64 row = i / tiles;
        const u32 channel = (u32)(i % tiles) * VECTOR;
        const u64 at = row * channels + channel;
        Lanes to = {};
        if (counts(tokens, padding, row)) {
            const Lanes from = *reinterpret_cast<const Lanes*>(x + at);
            const Lanes slope = *reinterpret_cast<const Lanes*>(d_y + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const u32 c = channel + v;
                const float distance = from.at[v] - mean[c], deviation = rstd[c];
                float value = slope.at[v];
                if (again_rstd != nullptr
                    && !(distance * (again_rstd[c] * (again_gamma ? again_gamma[c] : 1.0f)) + (again_beta ? again_beta[c] : 0.0f) > 0.0f))
                    value = 0.0f;
                const float inside = value - sums[c] * one - distance * deviation * deviation * sums[channels + c] * one;
                to.at[v] = (gamma ? gamma[c] : 1.0f) * deviation * inside;
            }
        }
        if (accumulate) {
            const Lanes before = *reinterpret_cast<const Lanes*>(d_x + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) to.at[v] += before.at[v];
        }
        *reinterpret_cast<Lanes*>(d_x + at) = to;
    }
}

__global__ void backward_eval(
    const float* d_y, const float* tokens, float padding, const float* rstd, const float* gamma, float* d_x, u64 rows, u32 channels, int accumulate
) {
    EACH(i, rows * channels) {
        const u32 c = (u32)(i % channels);
        const float value = counts(tokens, padding, i / channels) ? d_y[i] * (rstd[c] * (gamma ? gamma[c] : 1.0f)) : 0.0f;
        d_x[i] = accumulate ? d_x[i] + value : value;
    }
}

// --- SyncBatchNorm ---
__global__ void sync_pack(const float* mean, const float* rstd, const float* count, float* packed, u32 channels) {
    const float n = count[0];
    EACH(c, channels) {
        packed[c] = n > 0.0f ? mean[c] : 0.0f;
        packed[channels + c] = n > 0.0f ? rstd[c] : 0.0f;
        if (c == 0) packed[2 * channels] = n;
    }
}

// In rank order; variances come back from reciprocal deviations, as PyTorch's gathered ones do.
__global__ void sync_merge(
    const float* gathered, u32 ranks, u32 channels, float eps, float* mean, float* variance, float* rstd, float* count
) {
    EACH(c, channels) {
        Moments all = {0.0f, 0.0f, 0.0f};
        for (u32 r = 0; r < ranks; ++r) {
            const float* of = gathered + (u64)r * (2 * channels + 1);
            const float n = of[2 * channels];
            if (n == 0.0f) continue;
            const float deviation = of[channels + c];
            const float own = 1.0f / (deviation * deviation) - eps;
            all = merged(all, {n, of[c], own * n});
        }
        mean[c] = all.mean;
        const float found = all.count > 0.0f ? all.m2 / all.count : 0.0f;
        variance[c] = found;
        rstd[c] = 1.0f / sqrtf(found + eps);
        if (c == 0) count[0] = all.count;
    }
}

// --- group norm over large samples: after `moments` and `finish_groups`, or `backward_sums` ---
// affine: 0 none, 1 per channel, 2 per element of a sample.
__global__ void group_normalize(
    const float* x, const float* mean, const float* rstd, const float* gamma, const float* beta, const float* shortcut, float* y, u64 spatial, u32 channels,
    u32 groups, u64 batch, int affine, int relu
) {
    const u32 tiles = channels / VECTOR, width = channels / groups;
    EACH(i, batch * spatial * tiles) {
        const u64 row = i / tiles, sample = row / spatial;
        const u32 channel = (u32)(i % tiles) * VECTOR;
        const u64 at = row * channels + channel;
        const Lanes from = *reinterpret_cast<const Lanes*>(x + at);
        Lanes added = {}, to;
        if (shortcut != nullptr) added = *reinterpret_cast<const Lanes*>(shortcut + at);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u64 group = sample * groups + (channel + v) / width;
            const u64 place = affine == 2 ? at - sample * spatial * channels + v : channel + v;
            float value = (from.at[v] - mean[group]) * rstd[group];
            if (affine != 0) value = value * gamma[place] + beta[place];
            value += added.at[v];
            to.at[v] = relu && value < 0.0f ? 0.0f : value;
        }
        *reinterpret_cast<Lanes*>(y + at) = to;
    }
}
}

extern "C" {

// Of each sample and group: sums [samples, groups, 2] of γ·(Σ d_y) and γ·(Σ d_y·(x − mean)); a block a (group, sample).
__global__ void finish_group_sums(const float* partial, const float* gamma, u32 slabs, u32 channels, u32 groups, float* sums) {
    __shared__ float shared[32];
    const u32 width = channels / groups, group = blockIdx.x;
    const u64 sample = blockIdx.y;
    float a = 0.0f, b = 0.0f;
    for (u32 i = threadIdx.x; i < slabs * width; i += blockDim.x) {
        const u32 c = group * width + i % width;
        const float* of = partial + (sample * slabs + i / width) * 2 * channels + c;
        const float factor = gamma ? gamma[c] : 1.0f;
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

// d_gamma[c] += Σ_samples rstd·Σ d_y·(x − mean), d_beta[c] += Σ_samples Σ d_y: in order of samples and slabs.
__global__ void group_affine(
    const float* partial, const float* rstd, u64 samples, u32 slabs, u32 channels, u32 groups, float* d_gamma, float* d_beta
) {
    const u32 width = channels / groups;
    EACH(c, channels) {
        float gamma = 0.0f, beta = 0.0f;
        for (u64 sample = 0; sample < samples; ++sample) {
            float a = 0.0f, b = 0.0f;
            for (u32 s = 0; s < slabs; ++s) {
                const float* of = partial + (sample * slabs + s) * 2 * channels + c;
                a += of[0];
                b += of[channels];
            }
            beta += a;
            gamma += b * rstd[sample * groups + c / width];
        }
        if (d_gamma != nullptr) d_gamma[c] += gamma;
        if (d_beta != nullptr) d_beta[c] += beta;
    }
}

// dx (+)= rstd·[g − mean(g) − x̂·mean(g·x̂)], g = γ·d_y, γ per channel or absent.
__global__ void group_backward_input(
    const float* x, const float* d_y, const float* y, const float* gamma, const float* mean, const float* rstd, const float* sums, float* d_x, u64 spatial,
    u32 channels, u32 groups, u64 batch, int accumulate
) {
    const u32 tiles = channels / VECTOR, width = channels / groups;
    const float one = 1.0f / ((float)spatial * (float)width);
    EACH(i, batch * spatial * tiles) {
        const u64 row = i / tiles, sample = row / spatial;
        const u32 channel = (u32)(i % tiles) * VECTOR;
        const u64 at = row * channels + channel;
        const Lanes from = *reinterpret_cast<const Lanes*>(x + at);
        const Lanes slope = *reinterpret_cast<const Lanes*>(d_y + at);
        Lanes out = {}, to;
        if (y != nullptr) out = *reinterpret_cast<const Lanes*>(y + at);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u64 group = sample * groups + (channel + v) / width;
            const float deviation = rstd[group];
            const float open = y == nullptr || out.at[v] > 0.0f ? slope.at[v] : 0.0f;
            const float g = (gamma ? gamma[channel + v] : 1.0f) * open;
            const float hat = (from.at[v] - mean[group]) * deviation;
            to.at[v] = deviation * (g - sums[2 * group] * one - hat * (sums[2 * group + 1] * deviation * one));
        }
        if (accumulate) {
            const Lanes before = *reinterpret_cast<const Lanes*>(d_x + at);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) to.at[v] += before.at[v];
        }
        *reinterpret_cast<Lanes*>(d_x + at) = to;
    }
}
}
