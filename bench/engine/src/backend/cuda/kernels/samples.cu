// Norms of samples that are read once: a team of blocks holds a sample, or some channels of it, in shared memory between its sums and what is written.
//
// Layout: x is [batch, spatial, channels], channels fastest. A unit is some channels with all of their groups; a team takes the unit `team % units`
// of one sample after the other. Its blocks are `across` along the unit's channels times `slabs` along the rows. A thread of a block holds VECTOR
// neighbouring channels and every `down`-th row of the slab, and reads from shared memory only what it has put there itself. What a thread has written out
// makes room for the same row of its team's next sample, which is on its way while others of the block still write, and while the team meets.
// A team of several blocks merges what they found in a fixed order, through global memory and a barrier of its own, so all blocks must be resident
// together: such launches are cooperative. A launch begins with `arrived` zero.
// Reference: kernel.rs states the formulas; Chan, Golub, LeVeque 1979 for merged moments.
#include "columns.cuh"

constexpr u32 THREADS = 256;  // of a block
constexpr u32 MOST = 64;      // groups of a unit, at most
constexpr u32 APART = 32;     // teams' counters lie in different lines of the cache
constexpr u32 WRITTEN = 2;    // rows of a thread that are written together

struct Team {
    u64 batch, spatial;
    u32 channels, groups, unit, units, across, lanes, slabs;
    u32 rows;  // of a slab
    u32 keep;  // rows that a thread has room for
};

// Where a thread stands.
struct Place {
    u32 size, member, first;       // blocks of the team, this one among them, and the first one of the grid
    u32 team, slab, down, items;   // rows between those of a thread, and how many it has
    u32 channel, local;            // the thread's first channel, and from which one of the block's on
    u32 unit, sets, width;         // groups that the block has a part of, and channels of each here
    u32 helpers, set, helper;      // threads that merge a set, which set this one helps with, and as which of them
    u64 row, sample, stride;
};

__device__ __forceinline__ Place placed(const Team& of) {
    Place at;
    at.size = of.across * of.slabs;
    at.team = blockIdx.x / at.size;
    at.member = blockIdx.x % at.size;
    at.first = at.team * at.size;
    at.unit = at.team % of.units;
    at.sample = at.team / of.units;
    at.stride = gridDim.x / at.size / of.units;
    const u32 tile = at.member % of.across, lane = threadIdx.x % of.lanes, down = threadIdx.x / of.lanes;
    at.slab = at.member / of.across;
    at.down = THREADS / of.lanes;
    at.row = (u64)at.slab * of.rows + down;
    const u64 end = min((u64)(at.slab + 1) * of.rows, of.spatial);
    at.items = down < at.down && at.row < end ? (u32)((end - at.row + at.down - 1) / at.down) : 0;
    at.local = lane * VECTOR;
    at.channel = at.unit * of.unit + tile * of.lanes * VECTOR + at.local;
    at.width = of.across > 1 ? of.lanes * VECTOR : of.channels / of.groups;
    at.sets = of.across > 1 ? 1 : of.unit / at.width;
    at.helpers = WARP;
    while (at.helpers * at.sets > THREADS) at.helpers /= 2;
    at.set = threadIdx.x / at.helpers;
    at.helper = threadIdx.x % at.helpers;
    return at;
}

// Copies VECTOR values to shared memory without waiting for them; `arrive` waits for all that the thread has sent for.
__device__ __forceinline__ void fetch(value_t* to, const value_t* from) {
#if defined(__CUDA_ARCH__)
    constexpr int BYTES = VECTOR * sizeof(value_t);
    const u32 at = (u32)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    else if constexpr (BYTES >= 4) asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(BYTES) : "memory");
    else *to = *from;
#else
    for (int v = 0; v < VECTOR; ++v) to[v] = from[v];
#endif
}

__device__ __forceinline__ void arrive() {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

struct Sums {
    float a, b;
};

__device__ __forceinline__ Sums merged(const Sums& one, const Sums& other) { return {one.a + other.a, one.b + other.b}; }

__device__ __forceinline__ Moments of_lane(const Moments& own, u32 offset) {
    return {__shfl_xor_sync(ALL, own.mean, offset), __shfl_xor_sync(ALL, own.count, offset), __shfl_xor_sync(ALL, own.m2, offset)};
}

__device__ __forceinline__ Sums of_lane(const Sums& own, u32 offset) { return {__shfl_xor_sync(ALL, own.a, offset), __shfl_xor_sync(ALL, own.b, offset)}; }

// From the level of the cache that all blocks share.
__device__ __forceinline__ Moments latest(const Moments* at) {
    const double2 both = __ldcg(reinterpret_cast<const double2*>(at));
    const u64 rest = (u64)__double_as_longlong(both.y);
    return {both.x, __int_as_float((int)(u32)rest), __int_as_float((int)(u32)(rest >> 32))};
}

__device__ __forceinline__ Sums latest(const Sums* at) {
    const float2 both = __ldcg(reinterpret_cast<const float2*>(at));
    return {both.x, both.y};
}

// In the order of a tree over a set's helpers; the first one of them has the result.
template <typename T>
__device__ __forceinline__ T over_helpers(T all, const Place& at) {
    for (u32 offset = at.helpers / 2; offset > 0; offset /= 2) all = merged(all, of_lane(all, offset));
    return all;
}

// What a block's threads found, by groups: `found` of a thread's channels together where K is 1, else of each. `kept` has a place for each thread.
template <int K, typename T>
__device__ __forceinline__ T by_group(const T (&found)[K], T* kept, const Team& of, const Place& at) {
    T all = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
        __syncthreads();
        kept[threadIdx.x] = found[k];
        __syncthreads();
        if (at.set >= at.sets) continue;
        // Lanes whose channel number k is of this group.
        const u32 from = at.set * at.width, to = from + at.width;
        const u32 begin = from > k ? (from - k + VECTOR - 1) / VECTOR : 0, end = to > k ? (to - k + VECTOR - 1) / VECTOR : 0, wide = end - begin;
        if (wide == 0) continue;
        for (u32 i = at.helper; i < wide * at.down; i += at.helpers) all = merged(all, kept[i / wide * of.lanes + begin + i % wide]);
    }
    return over_helpers(all, at);
}

// What the blocks of a team found. `partial` has two times [blocks, groups of a unit], used in turn: who writes one has seen all of the team
// leave it.
template <typename T>
__device__ __forceinline__ T by_team(T own, T* partial, u32* arrived, u32 round, const Place& at) {
    if (at.size == 1) return own;
    T* all = partial + ((u64)(round % 2) * gridDim.x + at.first) * at.sets + (u64)at.set * at.size;
    if (at.helper == 0 && at.set < at.sets) all[at.member] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = arrived + at.team * APART;
        __threadfence();
        atomicAdd(counter, 1u);
        while (*(volatile u32*)counter < (round + 1) * at.size) __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
    T found = {};
    if (at.set < at.sets)
#pragma unroll 4
        for (u32 i = at.helper; i < at.size; i += at.helpers) found = merged(found, latest(all + i));
    return over_helpers(found, at);
}

// ONE: a thread's channels are of one group.
template <bool ONE, bool RMS>
__device__ __forceinline__ void forward(
    const value_t* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta, const value_t* __restrict__ shortcut, value_t* __restrict__ y,
    float* __restrict__ mean, float* __restrict__ rstd, const Team& of, Moments* partial, u32* arrived, int affine, float eps, int relu, value_t* room,
    Moments* kept, float (*groups)[MOST]
) {
    constexpr int K = ONE ? 1 : VECTOR;
    const Place at = placed(of);
    value_t* own = room + threadIdx.x * VECTOR;
    const u64 step = (u64)at.down * of.channels;
    const u64 each = of.spatial * of.channels, place = at.row * of.channels + at.channel;
    u32 round = 0;
    if (at.sample < of.batch)
        for (u32 i = 0; i < at.items; ++i) fetch(own + i * THREADS * VECTOR, x + at.sample * each + place + i * step);
    for (u64 sample = at.sample; sample < of.batch; sample += at.stride, ++round) {
        const u64 base = sample * each + place;
        const value_t* next = sample + at.stride < of.batch ? x + base + at.stride * each : nullptr;
        arrive();
        const float n = (float)(at.items * (VECTOR / K)), inverse = at.items > 0 ? 1.0f / n : 0.0f;
        float centre[K] = {}, off[K] = {}, squares[K] = {};
        if (!RMS) {
#pragma unroll 4
            for (u32 i = 0; i < at.items; ++i) {
                const Lanes from = load(own + i * THREADS * VECTOR);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) centre[v % K] += from.at[v];
            }
#pragma unroll
            for (int k = 0; k < K; ++k) centre[k] *= inverse;
        }
#pragma unroll 4
        for (u32 i = 0; i < at.items; ++i) {
            const Lanes from = load(own + i * THREADS * VECTOR);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float distance = from.at[v] - centre[v % K];
                off[v % K] += distance;
                squares[v % K] += distance * distance;
            }
        }
        Moments found[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            // What the first sum's rounding left, which is much where the mean is far from zero.
            const float missing = RMS ? 0.0f : off[k] * inverse;
            found[k] = {(double)centre[k] + (double)missing, n, squares[k] - missing * missing * n};
        }
        const Moments all = by_team(by_group(found, kept, of, at), partial, arrived, round, at);
        if (at.helper == 0 && at.set < at.sets) {
            const float deviation = 1.0f / sqrtf(fmaxf(all.m2, 0.0f) / all.count + eps);
            groups[0][at.set] = (float)all.mean;
            groups[1][at.set] = deviation;
            if (at.member == 0) {
                const u64 group = sample * of.groups + at.unit * (of.groups / of.units) + at.set;
                if (!RMS) mean[group] = (float)all.mean;
                rstd[group] = deviation;
            }
        }
        __syncthreads();
        if (at.items == 0) continue;
        float middle[VECTOR], scale[VECTOR], shift[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u32 set = at.sets == 1 ? 0 : (at.local + v) / at.width;
            middle[v] = groups[0][set];
            scale[v] = affine == 1 ? __fmul_rn(groups[1][set], gamma[at.channel + v]) : groups[1][set];
            shift[v] = affine == 1 && !RMS ? beta[at.channel + v] : 0.0f;
        }
        for (u32 first = 0; first < at.items; first += WRITTEN) {
            Lanes from[WRITTEN];
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r)
                if (first + r < at.items) from[r] = load(own + (first + r) * THREADS * VECTOR);
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r) {
                const u64 row = (first + r) * step;
                if (first + r >= at.items) continue;
                Lanes to, factor = {}, offset = {}, added = {};
                if (affine == 2) {
                    factor = load(gamma + place + row);
                    if (!RMS) offset = load(beta + place + row);
                }
                if (shortcut != nullptr) added = load(shortcut + base + row);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    float value = normalized(from[r].at[v], middle[v], scale[v], shift[v]);
                    if (affine == 2) value = RMS ? __fmul_rn(value, factor.at[v]) : __fmaf_rn(value, factor.at[v], offset.at[v]);
                    if (shortcut != nullptr) value = __fadd_rn(value, added.at[v]);
                    to.at[v] = rectified(value, relu);
                }
                store(y + base + row, to);
            }
            if (next == nullptr) continue;
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r)
                if (first + r < at.items) fetch(own + (first + r) * THREADS * VECTOR, next + (first + r) * step);
        }
    }
}

template <bool ONE>
__device__ __forceinline__ void backward(
    const value_t* __restrict__ x, value_t* d_y, const value_t* __restrict__ y, const float* __restrict__ gamma, const float* __restrict__ mean,
    const float* __restrict__ rstd, value_t* __restrict__ d_x, const Team& of, Sums* partial, u32* arrived, float* __restrict__ affine, int accumulate,
    value_t* room, Sums* kept, float (*groups)[MOST]
) {
    constexpr int K = ONE ? 1 : VECTOR;
    const Place at = placed(of);
    value_t *own = room + threadIdx.x * VECTOR, *slopes = own + (u64)of.keep * THREADS * VECTOR;
    const u64 step = (u64)at.down * of.channels;
    const float n = (float)of.spatial * (float)(of.channels / of.groups);
    float d_gamma[VECTOR] = {}, d_beta[VECTOR] = {};
    const u64 each = of.spatial * of.channels, place = at.row * of.channels + at.channel;
    u32 round = 0;
    if (at.sample < of.batch)
        for (u32 i = 0; i < at.items; ++i) {
            const u64 row = at.sample * each + place + i * step;
            fetch(own + i * THREADS * VECTOR, x + row);
            fetch(slopes + i * THREADS * VECTOR, d_y + row);
        }
    for (u64 sample = at.sample; sample < of.batch; sample += at.stride, ++round) {
        const u64 base = sample * each + place, next = base + at.stride * each, group = sample * of.groups + at.unit * (of.groups / of.units);
        const bool more = sample + at.stride < of.batch;
        float middle[VECTOR], deviation[VECTOR], a[VECTOR] = {}, b[VECTOR] = {};
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u32 set = at.sets == 1 ? 0 : (at.local + v) / at.width;
            const bool there = at.items > 0;
            middle[v] = there && mean != nullptr ? mean[group + set] : 0.0f;
            deviation[v] = there ? rstd[group + set] : 0.0f;
        }
        arrive();
#pragma unroll 4
        for (u32 i = 0; i < at.items; ++i) {
            const Lanes from = load(own + i * THREADS * VECTOR);
            Lanes slope = load(slopes + i * THREADS * VECTOR);
            if (y != nullptr) {
                const Lanes out = load(y + base + i * step);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) slope.at[v] = out.at[v] > 0.0f ? slope.at[v] : 0.0f;
                store(slopes + i * THREADS * VECTOR, slope);
                store(d_y + base + i * step, slope);
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                a[v] = __fadd_rn(a[v], slope.at[v]);
                b[v] = __fmaf_rn(slope.at[v], from.at[v] - middle[v], b[v]);
            }
        }
        Sums found[K] = {};
        float scale[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            scale[v] = at.items > 0 ? either(gamma, at.channel + v, 1.0f) : 0.0f;
            d_beta[v] = __fadd_rn(d_beta[v], a[v]);
            d_gamma[v] = __fmaf_rn(b[v], deviation[v], d_gamma[v]);
            found[v % K].a = __fmaf_rn(scale[v], a[v], found[v % K].a);
            found[v % K].b = __fmaf_rn(scale[v], b[v], found[v % K].b);
        }
        const Sums all = by_team(by_group(found, kept, of, at), partial, arrived, round, at);
        if (at.helper == 0 && at.set < at.sets) {
            groups[0][at.set] = mean != nullptr ? all.a / n : 0.0f;
            groups[1][at.set] = all.b / n;
        }
        __syncthreads();
        if (at.items == 0) continue;
        float d_mean[VECTOR], projection[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const u32 set = at.sets == 1 ? 0 : (at.local + v) / at.width;
            d_mean[v] = groups[0][set];
            projection[v] = deviation[v] * deviation[v] * groups[1][set];
        }
        for (u32 first = 0; first < at.items; first += WRITTEN) {
            Lanes from[WRITTEN], slope[WRITTEN];
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r) {
                if (first + r >= at.items) continue;
                from[r] = load(own + (first + r) * THREADS * VECTOR);
                slope[r] = load(slopes + (first + r) * THREADS * VECTOR);
            }
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r) {
                const u64 row = (first + r) * step;
                if (first + r >= at.items) continue;
                Lanes to = {};
                if (accumulate) to = load(d_x + base + row);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    const float g = __fmul_rn(scale[v], slope[r].at[v]);
                    const float gradient = __fmul_rn(deviation[v], __fmaf_rn(middle[v] - from[r].at[v], projection[v], g - d_mean[v]));
                    to.at[v] = accumulate ? __fadd_rn(to.at[v], gradient) : gradient;
                }
                store(d_x + base + row, to);
            }
            if (!more) continue;
#pragma unroll
            for (u32 r = 0; r < WRITTEN; ++r) {
                if (first + r >= at.items) continue;
                fetch(own + (first + r) * THREADS * VECTOR, x + next + (first + r) * step);
                fetch(slopes + (first + r) * THREADS * VECTOR, d_y + next + (first + r) * step);
            }
        }
    }
    if (affine == nullptr) return;
    // A slab of `affine` for each slab of each sample that is under way at a time.
    float* to = affine + (at.sample * of.slabs + at.slab) * 2 * of.channels + at.channel;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        __syncthreads();
        kept[threadIdx.x] = {d_gamma[v], d_beta[v]};
        __syncthreads();
        if (threadIdx.x >= of.lanes) continue;
        Sums all = kept[threadIdx.x];
        for (u32 r = 1; r < at.down; ++r) all = merged(all, kept[r * of.lanes + threadIdx.x]);
        to[v] = all.a;
        to[of.channels + v] = all.b;
    }
}

extern "C" {

// y and the statistics [batch, groups]. affine: 0 none, 1 per channel, 2 per element of a sample. `one`: width of a group % VECTOR == 0.
__global__ void __launch_bounds__(256, 4) team_forward(
    const value_t* x, const float* gamma, const float* beta, const value_t* shortcut, value_t* y, float* mean, float* rstd, Team of, Moments* partial,
    u32* arrived, int affine, float eps, int relu, int one
) {
    extern __shared__ float4 room[];
    __shared__ Moments kept[THREADS];
    __shared__ float groups[2][MOST];
    value_t* held = reinterpret_cast<value_t*>(room);
    if (one) forward<true, false>(x, gamma, beta, shortcut, y, mean, rstd, of, partial, arrived, affine, eps, relu, held, kept, groups);
    else forward<false, false>(x, gamma, beta, shortcut, y, mean, rstd, of, partial, arrived, affine, eps, relu, held, kept, groups);
}

// RMS norm, which has one group.
__global__ void __launch_bounds__(256, 4) team_rms_forward(
    const value_t* x, const float* gamma, const value_t* shortcut, value_t* y, float* rstd, Team of, Moments* partial, u32* arrived, int affine, float eps,
    int relu
) {
    extern __shared__ float4 room[];
    __shared__ Moments kept[THREADS];
    __shared__ float groups[2][MOST];
    value_t* held = reinterpret_cast<value_t*>(room);
    forward<true, true>(x, gamma, nullptr, shortcut, y, nullptr, rstd, of, partial, arrived, affine, eps, relu, held, kept, groups);
}

// `mean` null: RMS norm. γ per channel or null. With `y`, d_y becomes 0 where y is not positive, and stays so. affine: null where γ's and β's
// gradients are not wanted, else [samples under way, slabs, 2, channels], to be added up by `finish_run_affine`.
__global__ void __launch_bounds__(256, 4) team_backward(
    const value_t* x, value_t* d_y, const value_t* y, const float* gamma, const float* mean, const float* rstd, value_t* d_x, Team of, Sums* partial,
    u32* arrived, float* affine, int accumulate, int one
) {
    extern __shared__ float4 room[];
    __shared__ Sums kept[THREADS];
    __shared__ float groups[2][MOST];
    value_t* held = reinterpret_cast<value_t*>(room);
    if (one) backward<true>(x, d_y, y, gamma, mean, rstd, d_x, of, partial, arrived, affine, accumulate, held, kept, groups);
    else backward<false>(x, d_y, y, gamma, mean, rstd, d_x, of, partial, arrived, affine, accumulate, held, kept, groups);
}
}
