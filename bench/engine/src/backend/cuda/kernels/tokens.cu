// Embeddings, and attention without tensor cores: the fallback and the reference of cuDNN's.
// Reference: kernel.rs; Dao et al. 2022, algorithm 4, for the backward of attention.
#include "common.cuh"

extern "C" {

__global__ void embedding_forward(const float* tokens, const float* table, float* y, u64 rows, u32 features) {
    EACH(i, rows * features) y[i] = table[(u64)tokens[i / features] * features + i % features];
}

// In order of the rows, without atomics: a thread owns a feature, a block (features / 256, words that are looked for) scans the tokens of its word.
// `padding` below 0: none. One block a word costs rows × words / 32 reads of tokens, which lie in the cache; the table is written once.
__global__ void embedding_backward(const float* tokens, const float* d_y, float* d_table, u64 rows, u32 features, int padding) {
    extern __shared__ u32 found[];
    __shared__ u32 count;
    const u32 word = blockIdx.y;
    if ((int)word == padding) return;
    const u32 feature = blockIdx.x * blockDim.x + threadIdx.x;
    float total = 0.0f;
    for (u64 first = 0; first < rows; first += blockDim.x) {
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        const u64 row = first + threadIdx.x;
        const bool here = row < rows && (u32)tokens[row] == word;
        // Places in order: a ballot a warp, warps one after the other.
        const u32 mask = __ballot_sync(ALL, here);
        for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) {
            if (threadIdx.x / WARP == warp) {
                const u32 lane = threadIdx.x % WARP, base = count;
                __syncwarp();
                if (here) found[base + __popc(mask & ((1u << lane) - 1u))] = threadIdx.x;
                if (lane == 0) count = base + __popc(mask);
            }
            __syncthreads();
        }
        if (feature < features)
            for (u32 k = 0; k < count; ++k) total += d_y[(first + found[k]) * features + feature];
        __syncthreads();
    }
    if (feature < features && total != 0.0f) d_table[(u64)word * features + feature] += total;
}

// Scores are [batch·heads, length, length], made by a batched matrix product and already scaled by 1/√size. A block takes a row: softmax over the keys
// that are not padding, dropout; `kept` is the logarithm of Σ exp. A row without keys becomes zeros.
__global__ void attention_softmax(
    float* scores, const float* tokens, float* kept, u32 length, u32 heads, int padding, float p, u64 seed, u32 node, const int* state, u32 first
) {
    __shared__ float shared[32];
    const u64 row = blockIdx.x, sample = row / ((u64)heads * length);
    float* own = scores + row * length;
    const float* keys = tokens + sample * length;
    float largest = -INFINITY;
    for (u32 k = threadIdx.x; k < length; k += blockDim.x)
        if (padding < 0 || keys[k] != (float)padding) largest = fmaxf(largest, own[k]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, offset));
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    if (lane == 0) shared[warp] = largest;
    __syncthreads();
    largest = lane < warps ? shared[lane] : -INFINITY;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, offset));
    float total = 0.0f;
    for (u32 k = threadIdx.x; k < length; k += blockDim.x)
        if (padding < 0 || keys[k] != (float)padding) total += expf(own[k] - largest);
    total = block_sum(total, shared);
    const bool any = total > 0.0f;
    if (threadIdx.x == 0) kept[row] = any ? largest + logf(total) : 0.0f;
    const u32 step = (u32)state[0], global = (u32)state[1] + first + (u32)sample;
    const u64 element = row % ((u64)heads * length) * length;
    const float factor = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
    for (u32 k = threadIdx.x; k < length; k += blockDim.x) {
        float weight = any && (padding < 0 || keys[k] != (float)padding) ? expf(own[k] - largest) / total : 0.0f;
        if (p > 0.0f) {
            const u64 at = element + k;
            const Words words = philox(seed, (u32)(at / 4), global, step, 1u | node << 8);
            weight *= uniform(words.at[at % 4]) >= p ? factor : 0.0f;
        }
        own[k] = weight;
    }
}
}
