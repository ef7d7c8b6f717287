// Batch norm, with or without rows that are left out, its synchronization between ranks, and gradients of biases: sums over rows, per channel.
//
// Layout and reference: `columns.cuh`.
#include "columns.cuh"

constexpr int RUN = 8;  // rows whose moments are made in two passes over registers

// Moments of a thread's channels. Values are looked at from the first one, so that a mean far from zero takes no digits from distances.
struct Running {
    float count, pivot[VECTOR], mean[VECTOR], m2[VECTOR];
};

// The moments of some of RUN rows besides; of ALL, where that is known.
template <bool ALL_THERE>
__device__ __forceinline__ void add_run(Running& all, const Lanes (&values)[RUN], const bool (&there)[RUN]) {
    float n = RUN;
    if (!ALL_THERE) {
        n = 0.0f;
#pragma unroll
        for (int r = 0; r < RUN; ++r) n += there[r] ? 1.0f : 0.0f;
        if (n == 0.0f) return;
    }
    if (all.count == 0.0f) {
#pragma unroll
        for (int r = RUN - 1; r >= 0; --r)
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) all.pivot[v] = ALL_THERE || there[r] ? values[r].at[v] : all.pivot[v];
    }
    const float inverse = 1.0f / n, share = n / (all.count + n);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int r = 0; r < RUN; ++r) sum += ALL_THERE || there[r] ? values[r].at[v] - all.pivot[v] : 0.0f;
        const float centre = sum * inverse;
#pragma unroll
        for (int r = 0; r < RUN; ++r) {
            const float distance = ALL_THERE || there[r] ? values[r].at[v] - all.pivot[v] - centre : 0.0f;
            squares += distance * distance;
        }
        const float delta = centre - all.mean[v];
        all.mean[v] += delta * share;
        all.m2[v] += squares + delta * delta * all.count * share;
    }
    all.count += n;
}

extern "C" {

// partial [samples, slabs, 4, channels].
__global__ void __launch_bounds__(256, 3) moments(
    const value_t* __restrict__ x, const float* __restrict__ tokens, float padding, float* __restrict__ partial, u64 rows, u32 channels, u64 rows_a_slab
) {
    extern __shared__ double room[];
    Moments* kept = reinterpret_cast<Moments*>(room);
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    const value_t* own = x + blockIdx.z * rows * channels + channel;
    Running found = {};
    if (channel < channels) {
        const u64 batch = (u64)RUN * blockDim.y, step = (u64)blockDim.y * channels;
        u64 first = begin + threadIdx.y;
        bool there[RUN] = {};
        if (tokens == nullptr) {
            const value_t* from = own + first * channels;
            for (; first + (RUN - 1) * (u64)blockDim.y < end; first += batch, from += RUN * step) {
                Lanes values[RUN];
                load_rows(values, from, step);
                add_run<true>(found, values, there);
            }
        }
        for (; first < end; first += batch) {
            Lanes values[RUN];
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                const u64 row = first + (u64)r * blockDim.y;
                there[r] = row < end && counts(tokens, padding, row);
                values[r] = {};
                if (there[r]) values[r] = load(own + row * channels);
            }
            add_run<false>(found, values, there);
        }
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[(threadIdx.y * blockDim.x + lane) * VECTOR + v] = {(double)found.pivot[v] + (double)found.mean[v], found.count, found.m2[v]};
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
}

extern "C" {

// y = γ·(x − mean)·rstd + β (+ shortcut), rectified or not; 0 in rows that don't count.
__global__ void __launch_bounds__(256) normalize(
    const value_t* __restrict__ x, const float* __restrict__ tokens, float padding, const float* __restrict__ mean, const float* __restrict__ rstd,
    const float* __restrict__ gamma, const float* __restrict__ beta, const value_t* __restrict__ shortcut, value_t* __restrict__ y, u64 rows, u32 channels,
    int relu
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
    x += channel;
    y += channel;
    if (shortcut != nullptr) shortcut += channel;
    const u64 stride = (u64)gridDim.y * blockDim.y;
    u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y;
    if (tokens == nullptr) {
        if (shortcut != nullptr && relu) normalize_batches<true, true>(x, shortcut, y, first, rows, stride, channels, centre, scale, shift);
        else if (shortcut != nullptr) normalize_batches<true, false>(x, shortcut, y, first, rows, stride, channels, centre, scale, shift);
        else if (relu) normalize_batches<false, true>(x, shortcut, y, first, rows, stride, channels, centre, scale, shift);
        else normalize_batches<false, false>(x, shortcut, y, first, rows, stride, channels, centre, scale, shift);
    }
    for (; first < rows; first += stride) {
        const u64 at = first * channels;
        Lanes to = {}, added;
        if (counts(tokens, padding, first)) {
            if (shortcut != nullptr) added = load(shortcut + at);
            to = normalized_row(load(x + at), shortcut != nullptr ? &added : nullptr, centre, scale, shift, relu);
        }
        store(y + at, to);
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

// What the gradient of an input takes of its channel.
struct Slopes {
    float centre[VECTOR], factor[VECTOR], d_mean[VECTOR], projection[VECTOR];
    float scale[VECTOR], shift[VECTOR];  // of a gate that is computed again
};

// A row of `backward_input`; with `before`, added to it.
__device__ __forceinline__ Lanes input_row(const Lanes& from, const Lanes& slope, const Lanes* before, const Slopes& of, bool again) {
    Lanes to;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        float value = slope.at[v];
        if (again && !(normalized(from.at[v], of.centre[v], of.scale[v], of.shift[v]) > 0.0f)) value = 0.0f;
        const float gradient = __fmul_rn(of.factor[v], __fmaf_rn(of.centre[v] - from.at[v], of.projection[v], value - of.d_mean[v]));
        to.at[v] = before != nullptr ? __fadd_rn(before->at[v], gradient) : gradient;
    }
    return to;
}

// All batches of rows that are whole, from `first` on, which is moved behind them.
template <bool AGAIN, bool ACCUMULATE>
__device__ __forceinline__ void input_batches(
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, value_t* __restrict__ d_x, u64& first, u64 rows, u64 stride, u32 channels, const Slopes& of
) {
    const u64 step = stride * channels;
    u64 at = first * channels;
    for (; first + (BATCH - 1) * stride < rows; first += BATCH * stride, at += BATCH * step) {
        Lanes from[BATCH], slope[BATCH], before[BATCH];
        load_rows(from, x + at, step);
        load_rows(slope, d_y + at, step);
        if (ACCUMULATE) load_rows(before, d_x + at, step);
#pragma unroll
        for (int r = 0; r < BATCH; ++r) store(d_x + at + r * step, input_row(from[r], slope[r], ACCUMULATE ? &before[r] : nullptr, of, AGAIN));
    }
}

extern "C" {

// partial [samples, slabs, 2, channels]: Σ d_y and Σ d_y·(x − mean), with the gates of `sums`. With `y`, d_y is written.
__global__ void __launch_bounds__(256, 3) backward_sums(
    const value_t* x, value_t* d_y, const value_t* y, const float* tokens, float padding, const float* mean, const float* again_gamma, const float* again_beta,
    const float* again_rstd, float* partial, u64 rows, u32 channels, u32 groups, u64 rows_a_slab
) {
    extern __shared__ float shared[];
    if (again_rstd != nullptr)
        sums<true>(x, d_y, y, nullptr, tokens, padding, mean, again_gamma, again_beta, again_rstd, partial, rows, channels, groups, rows_a_slab, shared);
    else sums<false>(x, d_y, y, nullptr, tokens, padding, mean, nullptr, nullptr, nullptr, partial, rows, channels, groups, rows_a_slab, shared);
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
    const value_t* __restrict__ x, const value_t* __restrict__ d_y, const float* __restrict__ tokens, float padding, const float* __restrict__ mean,
    const float* __restrict__ rstd, const float* __restrict__ gamma, const float* __restrict__ sums, const float* __restrict__ count,
    const float* __restrict__ again_gamma, const float* __restrict__ again_beta, const float* __restrict__ again_rstd, value_t* __restrict__ d_x, u64 rows,
    u32 channels, int accumulate
) {
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= channels) return;
    const float n = count[0];
    Slopes of = {};
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const u32 c = channel + v;
        const float deviation = rstd[c];
        of.centre[v] = mean[c];
        of.factor[v] = deviation * either(gamma, c, 1.0f);
        of.d_mean[v] = sums[c] / n;
        of.projection[v] = deviation * deviation * (sums[channels + c] / n);
        if (again_rstd == nullptr) continue;
        of.scale[v] = __fmul_rn(again_rstd[c], either(again_gamma, c, 1.0f));
        of.shift[v] = either(again_beta, c, 0.0f);
    }
    x += channel;
    d_y += channel;
    d_x += channel;
    const u64 stride = (u64)gridDim.y * blockDim.y;
    u64 first = (u64)blockIdx.y * blockDim.y + threadIdx.y;
    const bool again = again_rstd != nullptr;
    if (tokens == nullptr) {
        if (again && accumulate) input_batches<true, true>(x, d_y, d_x, first, rows, stride, channels, of);
        else if (again) input_batches<true, false>(x, d_y, d_x, first, rows, stride, channels, of);
        else if (accumulate) input_batches<false, true>(x, d_y, d_x, first, rows, stride, channels, of);
        else input_batches<false, false>(x, d_y, d_x, first, rows, stride, channels, of);
    }
    for (; first < rows; first += stride) {
        const u64 at = first * channels;
        Lanes to = {};
        if (accumulate) to = load(d_x + at);
        if (counts(tokens, padding, first)) to = input_row(load(x + at), load(d_y + at), accumulate ? &to : nullptr, of, again);
        store(d_x + at, to);
    }
}

__global__ void __launch_bounds__(256) backward_eval(
    const value_t* __restrict__ d_y, const float* __restrict__ tokens, float padding, const float* __restrict__ rstd, const float* __restrict__ gamma,
    value_t* __restrict__ d_x, u64 rows, u32 channels, int accumulate
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
__global__ void __launch_bounds__(256, 3) column_sums(const value_t* __restrict__ x, float* __restrict__ partial, u64 rows, u32 channels, u64 rows_a_slab) {
    extern __shared__ float shared[];
    const u32 lane = threadIdx.x, channel = (blockIdx.x * blockDim.x + lane) * VECTOR;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    float total[VECTOR] = {};
    if (channel < channels) {
        const u64 batch = (u64)RUN * blockDim.y, step = (u64)blockDim.y * channels;
        u64 first = begin + threadIdx.y;
        const value_t* from = x + first * channels + channel;
        for (; first < end; first += batch, from += RUN * step) {
            Lanes values[RUN];
            if (first + (RUN - 1) * (u64)blockDim.y < end) load_rows(values, from, step);
            else
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
                    values[r] = {};
                    if (first + (u64)r * blockDim.y < end) values[r] = load(from + r * step);
                }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                float run = 0.0f;
#pragma unroll
                for (int r = 0; r < RUN; ++r) run += values[r].at[v];
                total[v] += run;
            }
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
}
