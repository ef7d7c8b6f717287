// Embeddings, and attention between matrix products: softmax and its backward on the scores of all heads of some samples.
//
// Attention's products are cuBLAS's, batched over samples and heads: forward Q·Kᵀ/√size, `attention_softmax`, weights·V; backward
// Q·Kᵀ/√size and dO·Vᵀ, `attention_softmax_backward`, then dV = Aᵀ·dO, dQ = B·K/√size, dK = Bᵀ·Q/√size of the matrices A and B that it leaves.
// Weights are made again from `kept`, the logarithm of each row's Σ exp, so that nothing of the square of the length outlives a call.
// Reference: kernel.rs; Dao et al. 2022, algorithm 4, for the backward of attention.
#include "common.cuh"

// A row of scores, four elements that share one draw of dropout's numbers at a time.
struct Row {
    value_t* own;
    const float* keys;
    u64 element, first_four, fours;  // the row's first element of its sample, and the fours that hold it
    u32 length, sample;
};

__device__ __forceinline__ Row row_of(value_t* scores, const float* tokens, u32 length, u32 heads) {
    const u64 row = blockIdx.x, rows = (u64)heads * length, sample = row / rows, element = row % rows * length;
    return {scores + row * length, tokens + sample * length, element, element / 4, (element + length + 3) / 4 - element / 4, length, (u32)sample};
}

// Where `padding` is below 0, there is none.
__device__ __forceinline__ bool seen(const float* keys, int padding, u32 k) { return padding < 0 || keys[k] != (float)padding; }

// Where an operand's matrices lie: its first one, and bytes from one sample and from one head to the next.
struct Operand {
    u64 base, sample, head;
};

struct Operands {
    Operand at[9];
};

extern "C" {

__global__ void embedding_forward(const float* __restrict__ tokens, const float* __restrict__ table, value_t* __restrict__ y, u64 rows, u32 features) {
    EACH(i, rows * features) {
        const Split at = split(i, features);
        y[i] = table[(u64)tokens[at.quotient] * features + at.rest];
    }
}

// Scores [samples·heads, length, length], already over √size, become drop(softmax) over the keys that are not padding, zeros where all are. A block
// takes a row. kept[row] = ln Σ exp, infinite where all keys are padding.
__global__ void __launch_bounds__(1024) attention_softmax(
    value_t* scores, const float* __restrict__ tokens, float* __restrict__ kept, u32 length, u32 heads, int padding, float p, u64 seed, u32 node,
    const int* __restrict__ state, u32 first
) {
    __shared__ float shared[32];
    const Row row = row_of(scores, tokens, length, heads);
    float largest = -infinity();
    for (u32 k = threadIdx.x; k < length; k += blockDim.x)
        if (seen(row.keys, padding, k)) largest = fmaxf(largest, row.own[k]);
    largest = block_max(largest, shared);
    float total = 0.0f;
    for (u32 k = threadIdx.x; k < length; k += blockDim.x)
        if (seen(row.keys, padding, k)) total += expf(row.own[k] - largest);
    total = block_sum(total, shared);
    // A sum of NaN is one of keys, and shows.
    const bool any = total != 0.0f;
    if (threadIdx.x == 0) kept[blockIdx.x] = any ? largest + logf(total) : infinity();
    const float share = any ? 1.0f / total : 0.0f;
    const u32 step = (u32)state[0], sample = (u32)state[1] + first + row.sample;
    __syncthreads();
    for (u64 four = row.first_four + threadIdx.x; four < row.first_four + row.fours; four += blockDim.x) {
        Factors factors = {{1.0f, 1.0f, 1.0f, 1.0f}};
        if (p > 0.0f) factors = drop(p, seed, node, step, sample, (u32)four);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const u64 at = 4 * four + j;
            if (at < row.element || at >= row.element + length) continue;
            const u32 k = (u32)(at - row.element);
            row.own[k] = any && seen(row.keys, padding, k) ? expf(row.own[k] - largest) * share * factors.at[j] : 0.0f;
        }
    }
}

// `scores` as they were before `attention_softmax` become drop(softmax), A; `d_weights`, dO·Vᵀ of the same shape, becomes the gradient of the scores,
// B = P·(drop(dO·Vᵀ) − Σ P·drop(dO·Vᵀ)). A block takes a row.
__global__ void __launch_bounds__(1024) attention_softmax_backward(
    value_t* scores, value_t* d_weights, const float* __restrict__ tokens, const float* __restrict__ kept, u32 length, u32 heads, int padding, float p, u64 seed,
    u32 node, const int* __restrict__ state, u32 first
) {
    __shared__ float shared[32];
    const Row row = row_of(scores, tokens, length, heads);
    value_t* slopes = d_weights + (u64)blockIdx.x * length;
    const float logarithm = kept[blockIdx.x];
    const u32 step = (u32)state[0], sample = (u32)state[1] + first + row.sample;
    // Weight and slope of element j of a four, and what dropout makes of it. Where a key is not seen nothing of it matters, even where it is no number.
    auto look = [&](u64 four, const Factors& factors, int j, float& weight, float& slope) {
        const u64 at = 4 * four + j;
        if (at < row.element || at >= row.element + length) return false;
        const u32 k = (u32)(at - row.element);
        const bool looked = seen(row.keys, padding, k);
        weight = looked ? expf(row.own[k] - logarithm) : 0.0f;
        slope = looked ? slopes[k] * factors.at[j] : 0.0f;
        return true;
    };
    auto factors_of = [&](u64 four) { return p > 0.0f ? drop(p, seed, node, step, sample, (u32)four) : Factors{{1.0f, 1.0f, 1.0f, 1.0f}}; };
    float mean = 0.0f;
    for (u64 four = row.first_four + threadIdx.x; four < row.first_four + row.fours; four += blockDim.x) {
        const Factors factors = factors_of(four);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float weight, slope;
            if (look(four, factors, j, weight, slope)) mean += weight * slope;
        }
    }
    mean = block_sum(mean, shared);
    // The same thread comes back to its elements. It computes them again: values that are narrow would have lost digits on the way through memory.
    for (u64 four = row.first_four + threadIdx.x; four < row.first_four + row.fours; four += blockDim.x) {
        const Factors factors = factors_of(four);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float weight, slope;
            if (!look(four, factors, j, weight, slope)) continue;
            const u32 k = (u32)(4 * four + j - row.element);
            slopes[k] = weight * (slope - mean);
            row.own[k] = weight * factors.at[j];
        }
    }
}

// to [count, matrices]: addresses of the matrices of each operand, those of a sample's heads beside each other.
__global__ void addresses(Operands operands, u32 count, u32 heads, u32 matrices, u64* __restrict__ to) {
    EACH(i, (u64)count * matrices) {
        const Operand of = operands.at[i / matrices];
        const u64 matrix = i % matrices;
        to[i] = of.base + matrix / heads * of.sample + matrix % heads * of.head;
    }
}
}
