// The gradient of an embedding: rows of d_y added up by their tokens, in the order of the rows, whatever the scheduler does.
//
// Rows are counted by token: `token_ranks` within chunks of rows, `token_starts` over chunks. Each token's rows then get places beside each other
// (`token_places`), in order; where a token's places begin differs from launch to launch, what is added up in which order does not. A block adds
// up to PIECE rows of a token (`embedding_sums`). Of a token with more rows each piece goes to `partial`, and `embedding_rest` adds up the pieces.
// Rows whose token is `padding` count nowhere; below 0: none.
// Reference: kernel.rs, EmbeddingBackward.
#include "lanes.cuh"

constexpr u32 PIECE = 64;
constexpr u32 DIRECT = 0xffffffffu;

// What a row's block has to do: nothing without a count.
struct alignas(16) Job {
    u32 from, count;  // places
    u32 slot;         // of `partial`, or DIRECT
    u32 pieces;       // of the token, where this is its first and they are several
};

template <int V>
__device__ __forceinline__ void add_to_table(float* to, const Lanes<V>& total) {
    Lanes<V> sum = load<V>(to);
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] += total.at[v];
    store<V>(to, sum);
}

template <int V>
__device__ __forceinline__ void sum_jobs(
    const float* __restrict__ tokens, const Job* __restrict__ jobs, const u32* __restrict__ places, const value_t* __restrict__ d_y,
    float* __restrict__ d_table, float* __restrict__ partial, u64 rows, u32 features
) {
    const u32 feature = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (feature >= features) return;
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const Job job = jobs[row];
        if (job.count == 0) continue;
        Lanes<V> total = {};
#pragma unroll 4
        for (u32 k = 0; k < job.count; ++k) {
            const Lanes<V> slope = load<V>(d_y + (u64)places[job.from + k] * features + feature);
#pragma unroll
            for (int v = 0; v < V; ++v) total.at[v] += slope.at[v];
        }
        if (job.slot == DIRECT) add_to_table<V>(d_table + (u64)tokens[row] * features + feature, total);
        else store<V>(partial + (u64)job.slot * features + feature, total);
    }
}

template <int V>
__device__ __forceinline__ void sum_pieces(
    const float* __restrict__ tokens, const Job* __restrict__ jobs, const u32* __restrict__ cursors, const u32* __restrict__ several,
    float* __restrict__ d_table, const float* __restrict__ partial, u32 features
) {
    const u32 feature = (blockIdx.x * blockDim.x + threadIdx.x) * V, many = cursors[2];
    if (feature >= features) return;
    for (u32 i = blockIdx.y; i < many; i += gridDim.y) {
        const u32 row = several[i];
        const Job job = jobs[row];
        Lanes<V> total = {};
#pragma unroll 4
        for (u32 k = 0; k < job.pieces; ++k) {
            const Lanes<V> piece = load<V>(partial + (u64)(job.slot + k) * features + feature);
#pragma unroll
            for (int v = 0; v < V; ++v) total.at[v] += piece.at[v];
        }
        add_to_table<V>(d_table + (u64)tokens[row] * features + feature, total);
    }
}

extern "C" {

// A block a chunk of blockDim.x rows, whole warps. ranks[row]: rows of the chunk before it that have its token. counts [chunks, words], zero before:
// rows of a chunk that have a token.
__global__ void __launch_bounds__(1024) token_ranks(
    const float* __restrict__ tokens, u32* __restrict__ ranks, u32* __restrict__ counts, u64 rows, u32 words, int padding
) {
    __shared__ float own[1024];
    const u64 row = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    const float token = row < rows ? tokens[row] : -1.0f;
    own[threadIdx.x] = token;
    __syncthreads();
    const u32 warp = threadIdx.x / WARP * WARP;
    u32 rank = 0;
#pragma unroll 8
    for (u32 i = 0; i < warp; ++i) rank += own[i] == token;
    for (u32 i = warp; i < threadIdx.x; ++i) rank += own[i] == token;
    if (row >= rows || (padding >= 0 && token == (float)padding)) return;
    ranks[row] = rank;
    // The last of them knows how many they are.
    atomicMax(counts + (u64)blockIdx.x * words + (u32)token, rank + 1);
}

// Threads (256), one a word: counts become rows of the chunks before; totals[word], and the first of its places and of its pieces.
// cursors, zero before: places and pieces that are taken, tokens of several pieces.
__global__ void __launch_bounds__(256) token_starts(
    u32* __restrict__ counts, u32* __restrict__ totals, u32* __restrict__ starts, u32* __restrict__ slots, u32* __restrict__ cursors, u32 chunks, u32 words
) {
    __shared__ u32 before[2][256];
    __shared__ u32 base[2];
    const u32 word = blockIdx.x * blockDim.x + threadIdx.x;
    u32 total = 0;
    if (word < words)
#pragma unroll 8
        for (u32 chunk = 0; chunk < chunks; ++chunk) {
            u32& here = counts[(u64)chunk * words + word];
            const u32 count = here;
            here = total;
            total += count;
        }
    const u32 wanted[2] = {total, total > PIECE ? (total + PIECE - 1) / PIECE : 0};
    u32 sum[2] = {wanted[0], wanted[1]};
    for (u32 step = 1; step < blockDim.x; step *= 2) {
        before[0][threadIdx.x] = sum[0];
        before[1][threadIdx.x] = sum[1];
        __syncthreads();
        if (threadIdx.x >= step) {
            sum[0] += before[0][threadIdx.x - step];
            sum[1] += before[1][threadIdx.x - step];
        }
        __syncthreads();
    }
    if (threadIdx.x == blockDim.x - 1)
        for (int k = 0; k < 2; ++k) base[k] = sum[k] > 0 ? atomicAdd(cursors + k, sum[k]) : 0;
    __syncthreads();
    if (word >= words) return;
    totals[word] = total;
    starts[word] = base[0] + sum[0] - wanted[0];
    slots[word] = base[1] + sum[1] - wanted[1];
}

// places, and each row's job. several[..]: first rows of tokens of several pieces, in any order.
__global__ void token_places(
    const float* __restrict__ tokens, const u32* __restrict__ ranks, const u32* __restrict__ counts, const u32* __restrict__ totals,
    const u32* __restrict__ starts, const u32* __restrict__ slots, u32* __restrict__ cursors, u32* __restrict__ places, Job* __restrict__ jobs,
    u32* __restrict__ several, u64 rows, u32 words, u32 chunk, int padding
) {
    EACH(row, rows) {
        Job job = {0, 0, DIRECT, 0};
        const float token = tokens[row];
        if (padding < 0 || token != (float)padding) {
            const u32 word = (u32)token, rank = counts[split(row, chunk).quotient * words + word] + ranks[row], total = totals[word], start = starts[word];
            places[start + rank] = (u32)row;
            if (rank % PIECE == 0) {
                job.from = start + rank;
                job.count = min(PIECE, total - rank);
                if (total > PIECE) {
                    job.slot = slots[word] + rank / PIECE;
                    job.pieces = rank == 0 ? (total + PIECE - 1) / PIECE : 0;
                    if (rank == 0) several[atomicAdd(cursors + 2, 1u)] = (u32)row;
                }
            }
        }
        jobs[row] = job;
    }
}

// Grid (feature tiles, rows or fewer). `four`: features are a multiple of 4 and operands lie on multiples of 4 elements.
__global__ void __launch_bounds__(256) embedding_sums(
    const float* tokens, const Job* jobs, const u32* places, const value_t* d_y, float* d_table, float* partial, u64 rows, u32 features, int four
) {
    if (four) sum_jobs<4>(tokens, jobs, places, d_y, d_table, partial, rows, features);
    else sum_jobs<1>(tokens, jobs, places, d_y, d_table, partial, rows, features);
}

// Grid (feature tiles, tokens of several pieces or fewer).
__global__ void __launch_bounds__(256) embedding_rest(
    const float* tokens, const Job* jobs, const u32* cursors, const u32* several, float* d_table, const float* partial, u32 features, int four
) {
    if (four) sum_pieces<4>(tokens, jobs, cursors, several, d_table, partial, features);
    else sum_pieces<1>(tokens, jobs, cursors, several, d_table, partial, features);
}
}
