// What all kernels share: loops over elements, sums over a warp and a block, Philox.
//
// Contract: no headers are needed, not even CUDA's. Sums have an order of their own, whatever the scheduler does; nothing adds floats
// atomically. Where two kernels must round alike, products and sums are written as `__fmaf_rn`, `__fmul_rn` and `__fadd_rn`, which the compiler
// leaves as they are. Blocks of kernels that use `warp_sum` or `block_sum` are whole warps.
// Reference: Salmon et al., SC 2011, for Philox4x32-10.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define EACH(i, n) for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (n); i += (u64)gridDim.x * blockDim.x)

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;

// Numbers of 16 bits are moved as whole numbers, so that CUDA's headers are not needed.
__device__ __forceinline__ float from_bf16(u16 bits) { return __int_as_float((int)((u32)bits << 16)); }

// To nearest, ties to even; by hand where there is no instruction for it.
__device__ __forceinline__ u16 to_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    return rounded;
#else
    const u32 bits = (u32)__float_as_int(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 0x40u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// A number in memory that is read into a float and rounded when it is written.
struct Bf16 {
    u16 bits;
    __device__ __forceinline__ operator float() const { return from_bf16(bits); }
    __device__ __forceinline__ Bf16& operator=(float value) {
        bits = to_bf16(value);
        return *this;
    }
    __device__ __forceinline__ Bf16& operator+=(float value) { return *this = from_bf16(bits) + value; }
};

// What activations and their gradients are in memory; parameters and their gradients, statistics and partial sums are floats, and so is all
// arithmetic. A file whose kernels touch values is compiled once for each type.
#ifdef VALUES_BF16
typedef Bf16 value_t;
#else
typedef float value_t;
#endif

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

struct Split {
    u64 quotient;
    u32 rest;
};

// i / by and i % by. A division of 64 bits takes many times the instructions of one of 32, and is hardly ever needed.
__device__ __forceinline__ Split split(u64 i, u32 by) {
    if (i >> 32) return {i / by, (u32)(i % by)};
    const u32 quotient = (u32)i / by;
    return {quotient, (u32)i - quotient * by};
}

// As EACH, several elements of a thread at a time, so that enough of memory is under way where an element is only a few bytes.
template <typename F>
__device__ __forceinline__ void each(u64 n, F body) {
    constexpr int TOGETHER = 16 / sizeof(value_t);
    const u64 tile = TOGETHER * (u64)blockDim.x;
    for (u64 first = blockIdx.x * tile; first < n; first += gridDim.x * tile) {
        const u64 i = first + threadIdx.x;
        if (first + tile <= n) {
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) body(i + j * blockDim.x);
        } else {
            for (int j = 0; j < TOGETHER; ++j)
                if (i + j * blockDim.x < n) body(i + j * blockDim.x);
        }
    }
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, offset));
    return value;
}

// The sum over a block of up to 1024 threads, for every thread of it. `shared` has 32 places.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (warps == 1) return value;
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? shared[lane] : (T)0);
}

// The same of the largest value.
__device__ __forceinline__ float block_max(float value, float* shared) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_max(value);
    if (warps == 1) return value;
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    return warp_max(lane < warps ? shared[lane] : -infinity());
}

// max(value, 0) where `relu`; NaN stays NaN, so that a diverged run shows.
__device__ __forceinline__ float rectified(float value, int relu) { return relu && value < 0.0f ? 0.0f : value; }

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

// What dropout multiplies the elements 4·block .. of a sample by: 1/(1 − p) or 0.
struct Factors {
    float at[4];
};

__device__ __forceinline__ Factors drop(float p, u64 seed, u32 node, u32 step, u32 sample, u32 block) {
    const float scale = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
    const Words words = philox(seed, block, sample, step, 1u | node << 8);
    Factors factors;
#pragma unroll
    for (int j = 0; j < 4; ++j) factors.at[j] = uniform(words.at[j]) >= p ? scale : 0.0f;
    return factors;
}
