// What all kernels share: loops over elements, sums over a warp and a block, Welford's moments, Philox.
//
// Contract: results do not depend on the size of the grid where a kernel says so: partial sums lie in an order of their own and are added up in it.
// Reference: Chan, Golub, LeVeque 1979 for merged moments; Salmon et al., SC 2011, for Philox4x32-10.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define EACH(i, n) for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (n); i += (u64)gridDim.x * blockDim.x)

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
    return value;
}

// The sum over a block of up to 1024 threads, for every thread of it. `shared` has 32 places.
__device__ __forceinline__ float block_sum(float value, float* shared) {
    value = warp_sum(value);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

// Number, mean, and sum of squared distances from it.
struct Moments {
    float count, mean, m2;
};

__device__ __forceinline__ void add(Moments& to, float value) {
    to.count += 1.0f;
    const float delta = value - to.mean;
    to.mean += delta / to.count;
    to.m2 += delta * (value - to.mean);
}

__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

struct Words {
    u32 at[4];
};

// Ten rounds of Philox4x32, as `philox.rs` has it.
__device__ __forceinline__ Words philox(u64 seed, u32 c0, u32 c1, u32 c2, u32 c3) {
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        const u32 n0 = (u32)(b >> 32) ^ c1 ^ k0, n2 = (u32)(a >> 32) ^ c3 ^ k1;
        c1 = (u32)b;
        c3 = (u32)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

__device__ __forceinline__ float uniform(u32 word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }
