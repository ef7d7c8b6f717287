// Norms whose group is one run of memory: layer norm over features, group norm of one pixel, RMS norm. A warp takes a short run, a block a long one.
//
// Layout: x is [runs, length]; run r belongs to group r % groups of its sample. γ and β: element i of run r has that of
// affine 0: none, 1: its channel, (group·length + i) % channels, 2: its place in the sample, group·length + i.
// Up to ROOM elements a thread, of a warp's run up to WARP_ROOM, stay in registers, so that runs are read once; longer ones are read again from the cache. Four elements move
// together where lengths and addresses allow it.
// Reference: kernel.rs, GroupNormForward and RmsNormForward; Zhang and Sennrich 2019 for RMS norm.
#include "lanes.cuh"

constexpr int ROOM = 16;       // where a block takes a run
constexpr int WARP_ROOM = 32;  // where a warp does
constexpr int TOGETHER = 4;    // rows that are under way together in `rows_backward`
constexpr u32 COLUMNS = 32;  // elements of a block that sums over runs

template <bool BY_WARP>
__device__ __forceinline__ float sum_of(float value, float* shared) { return BY_WARP ? warp_sum(value) : block_sum(value, shared); }

__device__ __forceinline__ bool aligned(const void* a, const void* b, const void* c, const void* d, const void* e) {
    return (((u64)a | (u64)b | (u64)c | (u64)d | (u64)e) & 15u) == 0;
}

// Where γ and β of the sample's element lie; V neighbours lie beside each other.
__device__ __forceinline__ u64 place(u64 element, u32 channels, int affine) { return affine == 1 ? split(element, channels).rest : element; }

template <int V, bool RMS, bool BY_WARP>
__device__ __forceinline__ void forward(
    const value_t* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta, const value_t* __restrict__ shortcut,
    value_t* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, u64 run, u64 length, u32 groups, u32 channels, int affine, float eps, int relu,
    float* shared
) {
    constexpr int KEPT = (BY_WARP ? WARP_ROOM : ROOM) / V;
    const u32 threads = BY_WARP ? WARP : blockDim.x, thread = BY_WARP ? threadIdx.x % WARP : threadIdx.x;
    const u64 base = run * length, start = split(run, groups).rest * length, step = (u64)threads * V, mine = (u64)thread * V;
    Lanes<V> kept[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        kept[k] = {};
        if (mine + k * step < length) kept[k] = load<V>(x + base + mine + k * step);
    }
    float centre = 0.0f, off = 0.0f, squares = 0.0f;
    if (!RMS) {
        float total = 0.0f;
#pragma unroll
        for (int k = 0; k < KEPT; ++k)
#pragma unroll
            for (int v = 0; v < V; ++v) total += kept[k].at[v];
        for (u64 i = mine + KEPT * step; !BY_WARP && i < length; i += step) {
            const Lanes<V> more = load<V>(x + base + i);
#pragma unroll
            for (int v = 0; v < V; ++v) total += more.at[v];
        }
        centre = sum_of<BY_WARP>(total, shared) / (float)length;
    }
    auto measure = [&](const Lanes<V>& from) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float distance = from.at[v] - centre;
            off += distance;
            squares += distance * distance;
        }
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k)
        if (mine + k * step < length) measure(kept[k]);
    for (u64 i = mine + KEPT * step; !BY_WARP && i < length; i += step) measure(load<V>(x + base + i));
    squares = sum_of<BY_WARP>(squares, shared);
    float variance = squares / (float)length;
    if (!RMS) {
        // What the first sum's rounding left, which is much where the mean is far from zero.
        const float missing = sum_of<BY_WARP>(off, shared) / (float)length;
        variance -= missing * missing;
        variance = variance < 0.0f ? 0.0f : variance;
        centre += missing;
        if (thread == 0) mean[run] = centre;
    }
    const float deviation = 1.0f / sqrtf(variance + eps);
    if (thread == 0) rstd[run] = deviation;
    auto write = [&](u64 i, const Lanes<V>& from) {
        Lanes<V> to, factor = {}, offset = {}, added = {};
        if (affine != 0) {
            const u64 at = place(start + i, channels, affine);
            factor = load<V>(gamma + at);
            if (!RMS) offset = load<V>(beta + at);
        }
        if (shortcut != nullptr) added = load<V>(shortcut + base + i);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            float value = __fmul_rn(from.at[v] - centre, deviation);
            if (affine != 0) value = RMS ? __fmul_rn(value, factor.at[v]) : __fmaf_rn(value, factor.at[v], offset.at[v]);
            if (shortcut != nullptr) value = __fadd_rn(value, added.at[v]);
            to.at[v] = rectified(value, relu);
        }
        store<V>(y + base + i, to);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k)
        if (mine + k * step < length) write(mine + k * step, kept[k]);
    for (u64 i = mine + KEPT * step; !BY_WARP && i < length; i += step) write(i, load<V>(x + base + i));
}

template <int V>
__device__ __forceinline__ void backward(
    const value_t* __restrict__ x, value_t* d_y, const value_t* __restrict__ y, const float* __restrict__ gamma, const float* __restrict__ mean,
    const float* __restrict__ rstd, value_t* __restrict__ d_x, u64 length, u32 groups, u32 channels, int affine, int accumulate, float* shared
) {
    constexpr int KEPT = ROOM / 2 / V;
    const u64 run = blockIdx.x, base = run * length, start = split(run, groups).rest * length, step = (u64)blockDim.x * V, mine = (u64)threadIdx.x * V;
    const float centre = mean != nullptr ? mean[run] : 0.0f, deviation = rstd[run];
    // g, and d_y as it passes the gate, which is kept.
    auto slope = [&](u64 i, bool gated) {
        Lanes<V> g = load<V>(d_y + base + i);
        if (gated) {
            const Lanes<V> out = load<V>(y + base + i);
#pragma unroll
            for (int v = 0; v < V; ++v) g.at[v] = out.at[v] > 0.0f ? g.at[v] : 0.0f;
            store<V>(d_y + base + i, g);
        }
        if (affine != 0) {
            const Lanes<V> factor = load<V>(gamma + place(start + i, channels, affine));
#pragma unroll
            for (int v = 0; v < V; ++v) g.at[v] = __fmul_rn(g.at[v], factor.at[v]);
        }
        return g;
    };
    auto normalized = [&](u64 i) {
        Lanes<V> hat = load<V>(x + base + i);
#pragma unroll
        for (int v = 0; v < V; ++v) hat.at[v] = __fmul_rn(hat.at[v] - centre, deviation);
        return hat;
    };
    float a = 0.0f, b = 0.0f;
    auto sum = [&](const Lanes<V>& g, const Lanes<V>& hat) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
            a = __fadd_rn(a, g.at[v]);
            b = __fmaf_rn(g.at[v], hat.at[v], b);
        }
    };
    Lanes<V> g_kept[KEPT], hat_kept[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; ++k) {
        g_kept[k] = hat_kept[k] = {};
        if (mine + k * step >= length) continue;
        hat_kept[k] = normalized(mine + k * step);
        g_kept[k] = slope(mine + k * step, y != nullptr);
    }
#pragma unroll
    for (int k = 0; k < KEPT; ++k) sum(g_kept[k], hat_kept[k]);
    for (u64 i = mine + KEPT * step; i < length; i += step) sum(slope(i, y != nullptr), normalized(i));
    const float d_mean = mean != nullptr ? block_sum(a, shared) / (float)length : 0.0f;
    const float projection = block_sum(b, shared) / (float)length;
    auto write = [&](u64 i, const Lanes<V>& g, const Lanes<V>& hat) {
        Lanes<V> to = {};
        if (accumulate) to = load<V>(d_x + base + i);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float gradient = __fmul_rn(deviation, __fmaf_rn(-hat.at[v], projection, g.at[v] - d_mean));
            to.at[v] = accumulate ? __fadd_rn(to.at[v], gradient) : gradient;
        }
        store<V>(d_x + base + i, to);
    };
#pragma unroll
    for (int k = 0; k < KEPT; ++k)
        if (mine + k * step < length) write(mine + k * step, g_kept[k], hat_kept[k]);
    for (u64 i = mine + KEPT * step; i < length; i += step) write(i, slope(i, false), normalized(i));
}

// Whole rows of [rows, length], γ and β of each element: threads (across, down), of which `across` own V elements each of every row that comes by, so
// that γ's and β's gradients stay in registers. partial [blocks·down, 2, length] for `finish_run_affine`, or null.
template <int V>
__device__ __forceinline__ void whole_rows(
    const value_t* __restrict__ x, value_t* d_y, const value_t* __restrict__ y, const float* __restrict__ gamma, const float* __restrict__ mean,
    const float* __restrict__ rstd, value_t* __restrict__ d_x, float* __restrict__ partial, u64 rows, u32 length, int accumulate, float (*shared)[32][2 * TOGETHER]
) {
    const u32 element = threadIdx.x * V, warps = blockDim.x / WARP, warp = threadIdx.y * warps + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const bool mine = element < length;
    const float share = 1.0f / (float)length;
    Lanes<V> factor, d_gamma = {}, d_beta = {};
#pragma unroll
    for (int v = 0; v < V; ++v) factor.at[v] = mine && gamma != nullptr ? gamma[element + v] : 1.0f;
    const u64 tile = (u64)blockDim.y * TOGETHER;
    u32 turn = 0;
    for (u64 first = blockIdx.x * tile; first < rows; first += gridDim.x * tile, turn ^= 1) {
        const u64 row = first + (u64)threadIdx.y * TOGETHER;
        Lanes<V> hat[TOGETHER], g[TOGETHER], out[TOGETHER];
        float centre[TOGETHER], deviation[TOGETHER];
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
            hat[r] = g[r] = {};
            centre[r] = deviation[r] = 0.0f;
            if (!mine || row + r >= rows) continue;
            const u64 at = (row + r) * length + element;
            hat[r] = load<V>(x + at);
            g[r] = load<V>(d_y + at);
            if (y != nullptr) out[r] = load<V>(y + at);
            if (mean != nullptr) centre[r] = mean[row + r];
            deviation[r] = rstd[row + r];
        }
        float a[TOGETHER], b[TOGETHER];
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
            a[r] = b[r] = 0.0f;
            if (y != nullptr && mine && row + r < rows) {
#pragma unroll
                for (int v = 0; v < V; ++v) g[r].at[v] = out[r].at[v] > 0.0f ? g[r].at[v] : 0.0f;
                store<V>(d_y + (row + r) * length + element, g[r]);
            }
#pragma unroll
            for (int v = 0; v < V; ++v) {
                hat[r].at[v] = __fmul_rn(hat[r].at[v] - centre[r], deviation[r]);
                d_beta.at[v] = __fadd_rn(d_beta.at[v], g[r].at[v]);
                d_gamma.at[v] = __fmaf_rn(g[r].at[v], hat[r].at[v], d_gamma.at[v]);
                g[r].at[v] = __fmul_rn(g[r].at[v], factor.at[v]);
                a[r] = __fadd_rn(a[r], g[r].at[v]);
                b[r] = __fmaf_rn(g[r].at[v], hat[r].at[v], b[r]);
            }
            a[r] = warp_sum(a[r]);
            b[r] = warp_sum(b[r]);
        }
        if (warps > 1) {
            // Written in turn: who writes a place again has seen all of the block leave it.
            if (lane == 0)
#pragma unroll
                for (int r = 0; r < TOGETHER; ++r) {
                    shared[turn][warp][2 * r] = a[r];
                    shared[turn][warp][2 * r + 1] = b[r];
                }
            __syncthreads();
#pragma unroll
            for (int r = 0; r < TOGETHER; ++r) a[r] = b[r] = 0.0f;
            for (u32 w = threadIdx.y * warps; w < (threadIdx.y + 1) * warps; ++w)
#pragma unroll
                for (int r = 0; r < TOGETHER; ++r) {
                    a[r] += shared[turn][w][2 * r];
                    b[r] += shared[turn][w][2 * r + 1];
                }
        }
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) {
            if (!mine || row + r >= rows) continue;
            const float d_mean = mean != nullptr ? a[r] * share : 0.0f, projection = b[r] * share;
            const u64 at = (row + r) * length + element;
            Lanes<V> to = {};
            if (accumulate) to = load<V>(d_x + at);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float gradient = __fmul_rn(deviation[r], __fmaf_rn(-hat[r].at[v], projection, g[r].at[v] - d_mean));
                to.at[v] = accumulate ? __fadd_rn(to.at[v], gradient) : gradient;
            }
            store<V>(d_x + at, to);
        }
    }
    if (partial == nullptr || !mine) return;
    float* to = partial + ((u64)blockIdx.x * blockDim.y + threadIdx.y) * 2 * length + element;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        to[v] = d_gamma.at[v];
        to[length + v] = d_beta.at[v];
    }
}

extern "C" {

// A block takes a run.
__global__ void __launch_bounds__(512) run_forward(
    const value_t* x, const float* gamma, const float* beta, const value_t* shortcut, value_t* y, float* mean, float* rstd, u64 length, u32 groups,
    u32 channels, int affine, float eps, int relu
) {
    __shared__ float shared[32];
    if (length % 4 == 0 && (affine != 1 || channels % 4 == 0) && aligned(x, gamma, beta, shortcut, y))
        forward<4, false, false>(x, gamma, beta, shortcut, y, mean, rstd, blockIdx.x, length, groups, channels, affine, eps, relu, shared);
    else
        forward<1, false, false>(x, gamma, beta, shortcut, y, mean, rstd, blockIdx.x, length, groups, channels, affine, eps, relu, shared);
}

__global__ void __launch_bounds__(512) rms_forward(
    const value_t* x, const float* gamma, const value_t* shortcut, value_t* y, float* rstd, u64 length, u32 channels, int affine, float eps, int relu
) {
    __shared__ float shared[32];
    if (length % 4 == 0 && (affine != 1 || channels % 4 == 0) && aligned(x, gamma, nullptr, shortcut, y))
        forward<4, true, false>(x, gamma, nullptr, shortcut, y, nullptr, rstd, blockIdx.x, length, 1, channels, affine, eps, relu, shared);
    else
        forward<1, true, false>(x, gamma, nullptr, shortcut, y, nullptr, rstd, blockIdx.x, length, 1, channels, affine, eps, relu, shared);
}

// A warp takes a run, of WARP·WARP_ROOM elements at most. `mean` null: RMS norm.
__global__ void __launch_bounds__(256) warp_forward(
    const value_t* x, const float* gamma, const float* beta, const value_t* shortcut, value_t* y, float* mean, float* rstd, u64 runs, u64 length, u32 groups,
    u32 channels, int affine, float eps, int relu
) {
    const u64 run = blockIdx.x * (u64)(blockDim.x / WARP) + threadIdx.x / WARP;
    if (run >= runs) return;
    const bool four = length % 4 == 0 && (affine != 1 || channels % 4 == 0) && aligned(x, gamma, beta, shortcut, y);
    if (mean != nullptr && four)
        forward<4, false, true>(x, gamma, beta, shortcut, y, mean, rstd, run, length, groups, channels, affine, eps, relu, nullptr);
    else if (mean != nullptr)
        forward<1, false, true>(x, gamma, beta, shortcut, y, mean, rstd, run, length, groups, channels, affine, eps, relu, nullptr);
    else if (four)
        forward<4, true, true>(x, gamma, nullptr, shortcut, y, nullptr, rstd, run, length, groups, channels, affine, eps, relu, nullptr);
    else
        forward<1, true, true>(x, gamma, nullptr, shortcut, y, nullptr, rstd, run, length, groups, channels, affine, eps, relu, nullptr);
}

// Rows of up to 512·V elements, V 4 where `four`, else 1. `mean` null: RMS norm. With `y` as in `run_backward`.
__global__ void __launch_bounds__(512) rows_backward(
    const value_t* x, value_t* d_y, const value_t* y, const float* gamma, const float* mean, const float* rstd, value_t* d_x, float* partial, u64 rows,
    u32 length, int accumulate, int four
) {
    __shared__ float shared[2][32][2 * TOGETHER];
    if (four) whole_rows<4>(x, d_y, y, gamma, mean, rstd, d_x, partial, rows, length, accumulate, shared);
    else whole_rows<1>(x, d_y, y, gamma, mean, rstd, d_x, partial, rows, length, accumulate, shared);
}

// `mean` null: RMS norm, whose x̂ has no centre and whose gradient no mean. With `y`, d_y becomes 0 where y is not positive, and stays so.
__global__ void __launch_bounds__(512) run_backward(
    const value_t* x, value_t* d_y, const value_t* y, const float* gamma, const float* mean, const float* rstd, value_t* d_x, u64 length, u32 groups, u32 channels,
    int affine, int accumulate
) {
    __shared__ float shared[32];
    if (length % 4 == 0 && (affine != 1 || channels % 4 == 0) && aligned(x, d_y, y, gamma, d_x))
        backward<4>(x, d_y, y, gamma, mean, rstd, d_x, length, groups, channels, affine, accumulate, shared);
    else
        backward<1>(x, d_y, y, gamma, mean, rstd, d_x, length, groups, channels, affine, accumulate, shared);
}

// Gradients of γ and β over runs: x is [samples, spatial, elements] with an element for each γ (per channel: elements = channels; per element:
// spatial = 1). Threads (32, 8) take 32 elements and a slab of rows each; partial [slabs, 2, elements], added up by `finish_run_affine`. Several groups
// are only where a run is a group of one pixel. With `y` as in `run_backward`.
__global__ void __launch_bounds__(256) run_affine(
    const value_t* __restrict__ x, value_t* __restrict__ d_y, const value_t* __restrict__ y, const float* __restrict__ mean, const float* __restrict__ rstd,
    float* __restrict__ partial, u64 rows, u64 spatial, u32 elements, u32 groups, u64 rows_a_slab
) {
    __shared__ float shared[2][8][COLUMNS + 1];
    const u32 element = blockIdx.x * COLUMNS + threadIdx.x;
    const u64 begin = blockIdx.y * rows_a_slab, end = min(begin + rows_a_slab, rows);
    float gamma = 0.0f, beta = 0.0f;
    if (element < elements) {
        const u32 group = element / (elements / groups);
        for (u64 first = begin + threadIdx.y; first < end; first += (u64)4 * blockDim.y) {
            float from[4], slope[4], out[4], centre[4], deviation[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const u64 row = first + (u64)r * blockDim.y, at = row * elements + element;
                from[r] = slope[r] = centre[r] = deviation[r] = 0.0f;
                out[r] = 1.0f;
                if (row >= end) continue;
                const u64 run = (spatial == 1 ? row : split(row, (u32)spatial).quotient) * groups + group;
                from[r] = x[at];
                slope[r] = d_y[at];
                if (y != nullptr) out[r] = y[at];
                if (mean != nullptr) centre[r] = mean[run];
                deviation[r] = rstd[run];
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const u64 row = first + (u64)r * blockDim.y;
                if (y != nullptr && row < end && !(out[r] > 0.0f)) {
                    slope[r] = 0.0f;
                    d_y[row * elements + element] = 0.0f;
                }
                beta = __fadd_rn(beta, slope[r]);
                gamma = __fmaf_rn(slope[r], __fmul_rn(from[r] - centre[r], deviation[r]), gamma);
            }
        }
    }
    shared[0][threadIdx.y][threadIdx.x] = gamma;
    shared[1][threadIdx.y][threadIdx.x] = beta;
    __syncthreads();
    if (threadIdx.y == 0 && element < elements) {
        for (u32 r = 1; r < blockDim.y; ++r) {
            gamma += shared[0][r][threadIdx.x];
            beta += shared[1][r][threadIdx.x];
        }
        float* to = partial + (u64)blockIdx.y * 2 * elements + element;
        to[0] = gamma;
        to[elements] = beta;
    }
}

// d_gamma and d_beta += the sums over slabs, in the order of a tree.
__global__ void __launch_bounds__(1024) finish_run_affine(const float* __restrict__ partial, u32 slabs, u32 elements, float* __restrict__ d_gamma, float* __restrict__ d_beta) {
    __shared__ float2 kept[32][COLUMNS];
    const u32 e = blockIdx.x * COLUMNS + threadIdx.x;
    float2 total = {0.0f, 0.0f};
    if (e < elements)
#pragma unroll 4
        for (u32 s = threadIdx.y; s < slabs; s += blockDim.y) {
            total.x += partial[(u64)s * 2 * elements + e];
            total.y += partial[((u64)s * 2 + 1) * elements + e];
        }
    kept[threadIdx.y][threadIdx.x] = total;
    for (u32 step = 1; step < blockDim.y; step *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * step) == 0 && threadIdx.y + step < blockDim.y) {
            kept[threadIdx.y][threadIdx.x].x += kept[threadIdx.y + step][threadIdx.x].x;
            kept[threadIdx.y][threadIdx.x].y += kept[threadIdx.y + step][threadIdx.x].y;
        }
    }
    if (threadIdx.y == 0 && e < elements) {
        if (d_gamma != nullptr) d_gamma[e] += kept[0][threadIdx.x].x;
        if (d_beta != nullptr) d_beta[e] += kept[0][threadIdx.x].y;
    }
}
}
