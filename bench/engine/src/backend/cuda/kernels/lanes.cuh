// V neighbouring elements that a thread loads and stores together, in floats whatever they are in memory. They lie on a multiple of V elements.
#pragma once
#include "common.cuh"

template <int V>
struct alignas(4 * V) Lanes {
    float at[V];
};

template <int V>
__device__ __forceinline__ Lanes<V> load(const float* from) { return *reinterpret_cast<const Lanes<V>*>(from); }

template <int V>
__device__ __forceinline__ void store(float* to, const Lanes<V>& value) { *reinterpret_cast<Lanes<V>*>(to) = value; }

template <int V>
struct alignas(2 * V) Bf16Lanes {
    Bf16 at[V];
};

template <int V>
__device__ __forceinline__ Lanes<V> load(const Bf16* from) {
    const Bf16Lanes<V> narrow = *reinterpret_cast<const Bf16Lanes<V>*>(from);
    Lanes<V> wide;
#pragma unroll
    for (int v = 0; v < V; ++v) wide.at[v] = narrow.at[v];
    return wide;
}

template <int V>
__device__ __forceinline__ void store(Bf16* to, const Lanes<V>& value) {
    Bf16Lanes<V> narrow;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow.at[v] = value.at[v];
    *reinterpret_cast<Bf16Lanes<V>*>(to) = narrow;
}
