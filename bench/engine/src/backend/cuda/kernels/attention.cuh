// What the kernels of attention share: tiles of heads of HEAD elements in shared memory, tiles of C in registers, which keys are looked at and which
// weights are kept.
//
// Contract: blocks of THREADS; whole warps call what loads matrices or looks at keys. Rows behind a matrix's end are zeros in its tiles.
// Reference: mma.cuh; Dao, FlashAttention-2, 2023.
#pragma once
#include "mma.cuh"

constexpr int SIZE = HEAD;
constexpr int CHUNKS = SIZE / 8;  // 16 bytes of a row
constexpr int STEPS = SIZE / 16;  // products along a row
constexpr int WIDE = SIZE / 8;    // tiles of C along a row
constexpr u32 TILE = 64;          // rows of shared memory's matrices
constexpr u32 THREADS = 128;
constexpr u32 TILE_BYTES = TILE * SIZE * sizeof(Bf16);
// Tiles of 16 queries that a warp has of the forward pass.
constexpr int TALL = 2;
// Scores that are in registers at a time, in tiles of C: all of the forward pass, half of the backward pass.
constexpr int SCORES = TILE / 8, PART = SCORES / 2;
constexpr float LOG2_E = 1.4426950408889634f;

// One head of one sample.
struct Head {
    u64 queries, outputs;  // first elements in rows of queries, keys and values, and in those of outputs
    u64 row, wide;         // elements of a row of outputs, and of one of queries, keys and values
    const float* tokens;
    u64 position;  // first place in what has one number for each position
};

__device__ __forceinline__ Head head_of(u32 matrix, const float* tokens, u32 length, u32 heads) {
    const u32 sample = matrix / heads, head = matrix % heads;
    const u64 row = (u64)heads * SIZE, first = (u64)sample * length;
    return {first * 3 * row + head * SIZE, first * row + head * SIZE, row, 3 * row, tokens + first, (u64)matrix * length};
}

// A place of a tile. Chunks of 8 rows below each other lie in different banks.
__device__ __forceinline__ Place at(Place tile, u32 row, u32 chunk) {
    const u32 turn = SIZE == 64 ? row % 8 : row / 2 % 4;
    return tile + row * (u32)(SIZE * sizeof(Bf16)) + (chunk ^ turn) * 16;
}

// Rows first .. first + ROWS of a matrix, zeros behind its end.
template <u32 ROWS>
__device__ __forceinline__ void fetch(Place tile, const Bf16* from, u64 stride, u32 first, u32 length) {
#pragma unroll
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const u32 row = i / CHUNKS, chunk = i % CHUNKS;
        const bool there = first + row < length;
        copy_async<16>(at(tile, row, chunk), from + (there ? first + row : 0) * stride + chunk * 8, there);
    }
}

// 16 rows of a tile as A.
__device__ __forceinline__ void load_rows(u32 (&a)[4], Place tile, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(a, at(tile, row + lane % 16, 2 * step + lane / 16));
}

// 16 rows of a tile as columns of two B.
__device__ __forceinline__ void load_columns(u32 (&b)[4], Place tile, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(b, at(tile, row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
}

// 16 rows of a tile as rows of two B.
__device__ __forceinline__ void load_across(u32 (&b)[4], Place tile, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP;
    load_transposed(b, at(tile, row + lane % 16, 2 * step + lane / 16));
}

// What C holds of two tiles, as A.
__device__ __forceinline__ void rounded(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

// A bit for each key of a tile that is looked at. `padding` below 0: none.
__device__ __forceinline__ u64 seen(const Head& head, int padding, u32 first, u32 length) {
    const u32 left = length - first;
    if (padding < 0) return left >= TILE ? ~0ull : (1ull << left) - 1;
    const u32 lane = threadIdx.x % WARP;
    const float word = (float)padding;
    const bool low = lane < left && head.tokens[first + lane] != word;
    const bool high = lane + WARP < left && head.tokens[first + lane + WARP] != word;
    return __ballot_sync(ALL, low) | (u64)__ballot_sync(ALL, high) << 32;
}

struct Keys {
    u32 first;
    u64 seen;
};

// The first tile from `first` on with keys that are looked at.
__device__ __forceinline__ Keys keys_from(const Head& head, int padding, u32 first, u32 length) {
    for (; first < length; first += TILE) {
        const u64 bits = seen(head, padding, first, length);
        if (bits) return {first, bits};
    }
    return {length, 0};
}

// Of a row of scores in C's tiles: bit 8·j + (0 or 1) of a half of the tile is the lane's two keys of tile j.
struct Bits {
    u32 half[2];
    __device__ __forceinline__ bool at(int j, int which) const { return half[j / 4] >> (j % 4 * 8 + which) & 1; }
};

__device__ __forceinline__ Bits bits_of(u64 keys) {
    const u32 shift = threadIdx.x % 4 * 2;
    return {{(u32)keys >> shift, (u32)(keys >> 32) >> shift}};
}

// Bits of dropout of a row and the tile of keys that begins with `first`.
__device__ __forceinline__ Bits drawn(const u32* bits, const Head& head, u32 row, u32 first, u32 length) {
    const u32 words = (length + TILE - 1) / TILE * 2;
    return bits_of(row < length ? *(const u64*)(bits + (head.position + row) * words + first / WARP) : 0);
}

// Of a query: log2 of its row's Σ exp, and D over dropout's factor.
struct alignas(8) Query {
    float logarithm, mean;
};

// Sums of products of two rows of bfloat16, 8 elements of each.
struct alignas(16) Eight {
    u32 at[4];
};

__device__ __forceinline__ float dot(const Eight& a, const Eight& b, float total) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        total += from_bf16((u16)a.at[i]) * from_bf16((u16)b.at[i]);
        total += from_bf16((u16)(a.at[i] >> 16)) * from_bf16((u16)(b.at[i] >> 16));
    }
    return total;
}

// A warp's 16 rows of a gradient, zeros where a row's bit in `rows` is not set.
__device__ __forceinline__ void store(Bf16* to, u64 stride, u32 row, u32 length, u64 rows, const float (&c)[WIDE][4], float factor) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 own = row + lane / 4 + 8 * half;
        if (own >= length) continue;
        const bool set = rows >> own % TILE & 1;
#pragma unroll
        for (int j = 0; j < WIDE; ++j)
            *(u32*)(to + own * stride + 8 * j + lane % 4 * 2) = set ? pack(c[j][2 * half] * factor, c[j][2 * half + 1] * factor) : 0;
    }
}
