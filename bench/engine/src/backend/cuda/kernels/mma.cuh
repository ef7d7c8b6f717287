// Products of tiles of bfloat16 on tensor cores, and how shared memory feeds them.
//
// Contract: sm_80 or newer; whole warps call `multiply` and the functions that load for it. Lane l of a warp holds, with r = l / 4 and c = 2·(l % 4):
// of A [16, 16] the pairs (r, c), (r + 8, c), (r, c + 8), (r + 8, c + 8); of B [16, 8] the pairs of rows c and c + 8 of column r; of C [16, 8], in
// f32, the pairs (r, c) and (r + 8, c). So what C holds of two tiles beside each other is, rounded, A of a next product.
// Reference: PTX ISA, mma.m16n8k16, ldmatrix, cp.async.
#pragma once
#include "common.cuh"

// Where something lies in shared memory.
typedef u32 Place;

__device__ __forceinline__ Place place_of(const void* shared) { return (Place)__cvta_generic_to_shared(shared); }

// c += a·b.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 × 8: lane l says where row l % 8 of matrix l / 8 lies, and gets elements 2·(l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], Place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// The same of the matrices transposed: elements l / 4 of rows 2·(l % 4) and the next.
__device__ __forceinline__ void load_transposed(u32 (&to)[4], Place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// Bytes on their way from global to shared memory, 4, 8 or 16, at multiples of so many on both sides; zeros where there is nothing to copy, and then
// `from` is not read.
template <int BYTES>
__device__ __forceinline__ void copy_async(Place to, const void* from, bool there) {
    const u32 bytes = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" : : "r"(to), "l"(__cvta_generic_to_global(from)), "n"(BYTES), "r"(bytes) : "memory");
}

// What the thread has sent on its way since the last call is one group.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Until all of the thread's groups but the last `LEFT` have arrived. Other threads see them after the block's next barrier.
template <int LEFT>
__device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
}

// Two numbers rounded to bfloat16, the first one in the lower half.
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// 2^x to about two units in the last place; 0 for −∞.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
