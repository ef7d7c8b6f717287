// Attention on values in bfloat16 without scores in memory: heads of HEAD elements, 32 or 64.
//
// A block goes over all keys of some queries (forward, gradient of queries) or over all queries of some keys (gradients of keys and values), a tile
// of them at a time; the next tile is on its way meanwhile. Tiles of keys that are nothing but padding are passed over. Products are of bfloat16
// with sums in f32; softmax is in f32; weights, and the gradients of scores, are rounded before they are multiplied. Every sum has its own order:
// gradients of queries are made by a kernel of their own, which multiplies scores once more, since adding them up where keys' are made would take
// atomics. Which weights dropout keeps is drawn before, into a bit for each score. D = Σ dy·y is of the rounded y: where one key has almost all the
// weight, the gradient of its score, which is almost nothing, is that rounding's.
// Reference: kernel.rs; Dao, FlashAttention-2, 2023, algorithms 1 and 2.
#include "attention.cuh"

extern "C" {

// to [rows, words]: bit k % 32 of word k / 32 of a row is set where dropout keeps the weight of key k. A row has two words for each 64 keys. The
// draws are those of `drop`, eight of a word beside each other, which share the keys of each round.
__global__ void __launch_bounds__(256) dropout_bits(
    u32* __restrict__ to, u64 rows, u32 length, u32 heads, float p, u64 seed, u32 node, const int* __restrict__ state, u32 first
) {
    constexpr int DRAWS = 8;
    const u32 words = (length + TILE - 1) / TILE * 2, step = (u32)state[0], sample = (u32)state[1] + first;
    // uniform(word) ≥ p without floats, as word > most: both sides times 2^24, and the 8 bits that `uniform` leaves out. p is above 0.
    const u32 most = (u32)(((u64)ceilf(p * 16777216.0f) << 8) - 1);
    EACH(i, rows * words) {
        const Split row = split(i, words), own = split(row.quotient, heads * length);
        if (row.rest * WARP >= length) {
            to[i] = 0;
            continue;
        }
        const u64 element = (u64)own.rest * length + row.rest * WARP;
        const u32 before = element % 4, four = (u32)(element / 4), drawn_for = sample + (u32)own.quotient;
        const auto keep = [&](const Words& words) {
            u32 bits = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) bits |= words.at[j] > most ? 1u << j : 0u;
            return bits;
        };
        // Ten rounds as `philox` has them.
        Words at[DRAWS];
#pragma unroll
        for (int draw = 0; draw < DRAWS; ++draw) at[draw] = {{four + draw, drawn_for, step, 1u | node << 8}};
        u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
        for (int round = 0; round < 10; ++round) {
#pragma unroll
            for (int draw = 0; draw < DRAWS; ++draw) {
                u32(&c)[4] = at[draw].at;
                const u64 a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
                c[0] = (u32)(b >> 32) ^ c[1] ^ k0;
                c[1] = (u32)b;
                c[2] = (u32)(a >> 32) ^ c[3] ^ k1;
                c[3] = (u32)a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u32 kept = 0;
#pragma unroll
        for (int draw = 0; draw < DRAWS; ++draw) kept |= keep(at[draw]) << (4 * draw);
        // The word begins within its first draw, and ends in a ninth one.
        if (before) kept = kept >> before | keep(philox(seed, four + DRAWS, drawn_for, step, 1u | node << 8)) << (32 - before);
        to[i] = kept;
    }
}

// y and kept of a block's queries, 16·TALL for each warp. `bits` 0: nothing is dropped, and `factor` is 1. A block for each head and so many queries.
__global__ void __launch_bounds__(THREADS) flash_forward(
    const Bf16* __restrict__ qkv, const float* __restrict__ tokens, Bf16* __restrict__ y, float* __restrict__ kept, const u32* __restrict__ bits, u32 length,
    u32 heads, int padding, float factor, float scale
) {
    constexpr u32 QUERIES = TALL * TILE;
    alignas(128) __shared__ u8 stages[2][2 * TILE_BYTES];
    const u32 blocks = (length + QUERIES - 1) / QUERIES, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x % blocks * QUERIES, row = first + warp * (16 * TALL);
    const Head head = head_of(blockIdx.x / blocks, tokens, length, heads);
    const Bf16 *queries = qkv + head.queries, *keys = queries + head.row, *values = keys + head.row;
    auto stage = [&](u32 turn) { return place_of(stages) + turn * (2 * TILE_BYTES); };
    Keys now = keys_from(head, padding, 0, length);
    // Queries go through the place of the second tile of keys to registers.
    fetch<QUERIES>(stage(1), queries, head.wide, first, length);
    end_group();
    if (now.seen) {
        fetch<TILE>(stage(0), keys, head.wide, now.first, length);
        fetch<TILE>(stage(0) + TILE_BYTES, values, head.wide, now.first, length);
    }
    end_group();
    wait_for_groups<1>();
    __syncthreads();
    u32 q[TALL][STEPS][4];
#pragma unroll
    for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int step = 0; step < STEPS; ++step) load_rows(q[m][step], stage(1), warp * (16 * TALL) + 16 * m, step);
    float out[TALL][WIDE][4], largest[TALL][2], total[TALL][2];
#pragma unroll
    for (int m = 0; m < TALL; ++m) {
#pragma unroll
        for (int j = 0; j < WIDE; ++j) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0.0f;
        largest[m][0] = largest[m][1] = -infinity();
        total[m][0] = total[m][1] = 0.0f;
    }
    const float power = scale * LOG2_E;
    for (u32 turn = 0; now.seen; turn ^= 1) {
        wait_for_groups<0>();
        // The tile is there for all, and nobody reads the one before any more.
        __syncthreads();
        const Place k = stage(turn), v = k + TILE_BYTES;
        const Keys next = keys_from(head, padding, now.first + TILE, length);
        if (next.seen) {
            const Place other = stage(turn ^ 1);
            fetch<TILE>(other, keys, head.wide, next.first, length);
            fetch<TILE>(other + TILE_BYTES, values, head.wide, next.first, length);
        }
        end_group();
        float s[TALL][SCORES][4];
#pragma unroll
        for (int m = 0; m < TALL; ++m)
#pragma unroll
            for (int j = 0; j < SCORES; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int j = 0; j < SCORES; j += 2) {
                u32 b[4];
                load_columns(b, k, 8 * j, step);
#pragma unroll
                for (int m = 0; m < TALL; ++m) {
                    multiply(s[m][j], q[m][step], b[0], b[1]);
                    multiply(s[m][j + 1], q[m][step], b[2], b[3]);
                }
            }
        // Where a key is not seen its score does not matter, even where it is no number.
        if (~now.seen) {
            const Bits look = bits_of(now.seen);
#pragma unroll
            for (int j = 0; j < SCORES; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (!look.at(j, i % 2))
#pragma unroll
                        for (int m = 0; m < TALL; ++m) s[m][j][i] = -infinity();
        }
#pragma unroll
        for (int m = 0; m < TALL; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = largest[m][half];
#pragma unroll
                for (int j = 0; j < SCORES; ++j) most = fmaxf(most, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
                const float base = most == -infinity() ? 0.0f : most * power;
                const float shrink = power_of_two(largest[m][half] * power - base);
                largest[m][half] = most;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < SCORES; ++j)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        s[m][j][i] = power_of_two(s[m][j][i] * power - base);
                        sum += s[m][j][i];
                    }
                total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
                for (int j = 0; j < WIDE; ++j) {
                    out[m][j][2 * half] *= shrink;
                    out[m][j][2 * half + 1] *= shrink;
                }
                if (bits) {
                    const Bits keep = drawn(bits, head, row + 16 * m + lane / 4 + 8 * half, now.first, length);
#pragma unroll
                    for (int j = 0; j < SCORES; ++j)
#pragma unroll
                        for (int i = 0; i < 2; ++i)
                            if (!keep.at(j, i)) s[m][j][2 * half + i] = 0.0f;
                }
            }
#pragma unroll
        for (int j = 0; j < SCORES; j += 2) {
            u32 a[TALL][4];
#pragma unroll
            for (int m = 0; m < TALL; ++m) rounded(a[m], s[m][j], s[m][j + 1]);
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                u32 b[4];
                load_across(b, v, 8 * j, step);
#pragma unroll
                for (int m = 0; m < TALL; ++m) {
                    multiply(out[m][2 * step], a[m], b[0], b[1]);
                    multiply(out[m][2 * step + 1], a[m], b[2], b[3]);
                }
            }
        }
        now = next;
    }
#pragma unroll
    for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float all = total[m][half];
            all += __shfl_xor_sync(ALL, all, 1);
            all += __shfl_xor_sync(ALL, all, 2);
            // A sum of NaN is one of keys, and shows.
            const bool any = all != 0.0f;
            const u32 own = row + 16 * m + lane / 4 + 8 * half;
            if (own >= length) continue;
            if (lane % 4 == 0) kept[head.position + own] = any ? largest[m][half] * scale + logf(all) : infinity();
            const float share = any ? factor / all : 0.0f;
            Bf16* to = y + head.outputs + own * head.row + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < WIDE; ++j) *(u32*)(to + 8 * j) = pack(out[m][j][2 * half] * share, out[m][j][2 * half + 1] * share);
        }
}

// The gradient of a block's queries; and for each of them what the gradients of keys need too. A block for each head and 64 queries.
// Slopes are not multiplied by dropout's factor in between: D is divided by it instead, and the gradients are multiplied.
__global__ void __launch_bounds__(THREADS, 3) flash_queries(
    const Bf16* __restrict__ qkv, const float* __restrict__ tokens, const Bf16* __restrict__ y, const float* __restrict__ kept, const Bf16* __restrict__ d_y,
    Bf16* __restrict__ d_qkv, const u32* __restrict__ bits, Query* __restrict__ numbers, u32 length, u32 heads, int padding, float factor, float scale
) {
    alignas(128) __shared__ u8 stages[2][2 * TILE_BYTES];
    const u32 blocks = (length + TILE - 1) / TILE, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x % blocks * TILE, row = first + warp * 16;
    const Head head = head_of(blockIdx.x / blocks, tokens, length, heads);
    const Bf16 *queries = qkv + head.queries, *keys = queries + head.row, *values = keys + head.row;
    auto stage = [&](u32 turn) { return place_of(stages) + turn * (2 * TILE_BYTES); };
    Keys now = keys_from(head, padding, 0, length);
    fetch<TILE>(stage(1), queries, head.wide, first, length);
    fetch<TILE>(stage(1) + TILE_BYTES, d_y + head.outputs, head.row, first, length);
    end_group();
    if (now.seen) {
        fetch<TILE>(stage(0), keys, head.wide, now.first, length);
        fetch<TILE>(stage(0) + TILE_BYTES, values, head.wide, now.first, length);
    }
    end_group();
    // Two lanes share a row of their warp's.
    float sum = 0.0f;
    const u32 summed = row + lane / 2;
    if (summed < length) {
        const u64 begin = head.outputs + summed * head.row + lane % 2 * (SIZE / 2);
#pragma unroll
        for (int i = 0; i < SIZE / 2; i += 8) sum = dot(*(const Eight*)(y + begin + i), *(const Eight*)(d_y + begin + i), sum);
    }
    sum += __shfl_xor_sync(ALL, sum, 1);
    const Query query = {summed < length ? kept[head.position + summed] * LOG2_E : infinity(), factor > 0.0f ? sum / factor : 0.0f};
    if (lane % 2 == 0 && summed < length) numbers[head.position + summed] = query;
    float logarithm[2], mean[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 owner = lane / 4 * 2 + 16 * half;
        logarithm[half] = __shfl_sync(ALL, query.logarithm, owner);
        mean[half] = __shfl_sync(ALL, query.mean, owner);
    }
    wait_for_groups<1>();
    __syncthreads();
    u32 q[STEPS][4], d_out[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        load_rows(q[step], stage(1), warp * 16, step);
        load_rows(d_out[step], stage(1) + TILE_BYTES, warp * 16, step);
    }
    float d_q[WIDE][4];
#pragma unroll
    for (int j = 0; j < WIDE; ++j) d_q[j][0] = d_q[j][1] = d_q[j][2] = d_q[j][3] = 0.0f;
    const float power = scale * LOG2_E;
    for (u32 turn = 0; now.seen; turn ^= 1) {
        wait_for_groups<0>();
        __syncthreads();
        const Place k = stage(turn), v = k + TILE_BYTES;
        const Keys next = keys_from(head, padding, now.first + TILE, length);
        if (next.seen) {
            const Place other = stage(turn ^ 1);
            fetch<TILE>(other, keys, head.wide, next.first, length);
            fetch<TILE>(other + TILE_BYTES, values, head.wide, next.first, length);
        }
        end_group();
        Bits keep[2] = {{{ALL, ALL}}, {{ALL, ALL}}};
        if (bits)
#pragma unroll
            for (int half = 0; half < 2; ++half) keep[half] = drawn(bits, head, row + lane / 4 + 8 * half, now.first, length);
#pragma unroll
        for (int part = 0; part < SCORES; part += PART) {
            float s[PART][4], d_s[PART][4];
#pragma unroll
            for (int j = 0; j < PART; ++j) {
                s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
                d_s[j][0] = d_s[j][1] = d_s[j][2] = d_s[j][3] = 0.0f;
            }
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int j = 0; j < PART; j += 2) {
                    u32 b[4];
                    load_columns(b, k, 8 * (part + j), step);
                    multiply(s[j], q[step], b[0], b[1]);
                    multiply(s[j + 1], q[step], b[2], b[3]);
                    load_columns(b, v, 8 * (part + j), step);
                    multiply(d_s[j], d_out[step], b[0], b[1]);
                    multiply(d_s[j + 1], d_out[step], b[2], b[3]);
                }
            // Where a key is not seen nothing of it matters, even where it is no number.
            if (~now.seen) {
                const Bits look = bits_of(now.seen);
#pragma unroll
                for (int j = 0; j < PART; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!look.at(part + j, i % 2)) s[j][i] = -infinity(), d_s[j][i] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < PART; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float weight = power_of_two(s[j][i] * power - logarithm[i / 2]);
                    const float slope = keep[i / 2].at(part + j, i % 2) ? d_s[j][i] : 0.0f;
                    d_s[j][i] = weight * (slope - mean[i / 2]);
                }
#pragma unroll
            for (int j = 0; j < PART; j += 2) {
                u32 a[4];
                rounded(a, d_s[j], d_s[j + 1]);
#pragma unroll
                for (int step = 0; step < STEPS; ++step) {
                    u32 b[4];
                    load_across(b, k, 8 * (part + j), step);
                    multiply(d_q[2 * step], a, b[0], b[1]);
                    multiply(d_q[2 * step + 1], a, b[2], b[3]);
                }
            }
        }
        now = next;
    }
    store(d_qkv + head.queries, head.wide, row, length, ~0ull, d_q, scale * factor);
}

// The gradients of a block's keys and values. Scores lie transposed in registers, a row for each key. A block for each head and 64 keys.
__global__ void __launch_bounds__(THREADS, 3) flash_keys(
    const Bf16* __restrict__ qkv, const float* __restrict__ tokens, const Bf16* __restrict__ d_y, Bf16* __restrict__ d_qkv, const u32* __restrict__ bits,
    const Query* __restrict__ numbers, u32 length, u32 heads, int padding, float factor, float scale
) {
    alignas(128) __shared__ u8 stages[2][2 * TILE_BYTES];
    // Of each query of a tile: its numbers, and which keys dropout keeps.
    alignas(16) __shared__ Query of_queries[2][TILE];
    alignas(16) __shared__ u32 of_keys[2][TILE][2];
    const u32 blocks = (length + TILE - 1) / TILE, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x % blocks * TILE, row = first + warp * 16;
    const Head head = head_of(blockIdx.x / blocks, tokens, length, heads);
    const Bf16 *queries = qkv + head.queries, *keys = queries + head.row, *values = keys + head.row, *d_out = d_y + head.outputs;
    auto stage = [&](u32 turn) { return place_of(stages) + turn * (2 * TILE_BYTES); };
    float d_k[WIDE][4], d_v[WIDE][4];
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        d_k[j][0] = d_k[j][1] = d_k[j][2] = d_k[j][3] = 0.0f;
        d_v[j][0] = d_v[j][1] = d_v[j][2] = d_v[j][3] = 0.0f;
    }
    const u64 looked = seen(head, padding, first, length);
    const float power = scale * LOG2_E;
    if (looked) {
        auto fetch_queries = [&](u32 from, u32 to) {
            fetch<TILE>(stage(to), queries, head.wide, from, length);
            fetch<TILE>(stage(to) + TILE_BYTES, d_out, head.row, from, length);
            const u32 query = threadIdx.x % TILE;
            const bool there = from + query < length;
            const u64 own = head.position + (there ? from + query : 0);
            if (threadIdx.x < TILE)
                copy_async<8>(place_of(&of_queries[to][query]), numbers + own, there);
            else if (bits)
                copy_async<8>(place_of(of_keys[to][query]), bits + own * (2 * blocks) + first / WARP, there);
        };
        fetch<TILE>(stage(1), keys, head.wide, first, length);
        fetch<TILE>(stage(1) + TILE_BYTES, values, head.wide, first, length);
        end_group();
        fetch_queries(0, 0);
        end_group();
        wait_for_groups<1>();
        __syncthreads();
        u32 k[STEPS][4], v[STEPS][4];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            load_rows(k[step], stage(1), warp * 16, step);
            load_rows(v[step], stage(1) + TILE_BYTES, warp * 16, step);
        }
        for (u32 from = 0, turn = 0; from < length; from += TILE, turn ^= 1) {
            wait_for_groups<0>();
            __syncthreads();
            if (from + TILE < length) fetch_queries(from + TILE, turn ^ 1);
            end_group();
            const Place q = stage(turn), d_o = q + TILE_BYTES;
#pragma unroll
            for (int part = 0; part < SCORES; part += PART) {
                float s[PART][4], d_s[PART][4];
#pragma unroll
                for (int j = 0; j < PART; ++j) {
                    s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
                    d_s[j][0] = d_s[j][1] = d_s[j][2] = d_s[j][3] = 0.0f;
                }
#pragma unroll
                for (int step = 0; step < STEPS; ++step)
#pragma unroll
                    for (int j = 0; j < PART; j += 2) {
                        u32 b[4];
                        load_columns(b, q, 8 * (part + j), step);
                        multiply(s[j], k[step], b[0], b[1]);
                        multiply(s[j + 1], k[step], b[2], b[3]);
                        load_columns(b, d_o, 8 * (part + j), step);
                        multiply(d_s[j], v[step], b[0], b[1]);
                        multiply(d_s[j + 1], v[step], b[2], b[3]);
                    }
                // Weights become what dropout leaves of them. Queries behind the end are zeros, and so are their outputs' gradients: they add
                // nothing. Keys that are not seen have rows of their own, which are not stored.
#pragma unroll
                for (int j = 0; j < PART; ++j)
#pragma unroll
                    for (int which = 0; which < 2; ++which) {
                        const u32 query = 8 * (part + j) + lane % 4 * 2 + which;
                        const Query own = of_queries[turn][query];
                        const u32 keep = bits ? of_keys[turn][query][warp / 2] >> (warp % 2 * 16 + lane / 4) : ALL;
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            float &score = s[j][2 * half + which], &slope = d_s[j][2 * half + which];
                            const float weight = power_of_two(score * power - own.logarithm);
                            const bool kept = keep >> (8 * half) & 1;
                            score = kept ? weight : 0.0f;
                            slope = weight * ((kept ? slope : 0.0f) - own.mean);
                        }
                    }
#pragma unroll
                for (int j = 0; j < PART; j += 2) {
                    u32 a[4], d_a[4];
                    rounded(a, s[j], s[j + 1]);
                    rounded(d_a, d_s[j], d_s[j + 1]);
#pragma unroll
                    for (int step = 0; step < STEPS; ++step) {
                        u32 b[4];
                        load_across(b, d_o, 8 * (part + j), step);
                        multiply(d_v[2 * step], a, b[0], b[1]);
                        multiply(d_v[2 * step + 1], a, b[2], b[3]);
                        load_across(b, q, 8 * (part + j), step);
                        multiply(d_k[2 * step], d_a, b[0], b[1]);
                        multiply(d_k[2 * step + 1], d_a, b[2], b[3]);
                    }
                }
            }
        }
    }
    Bf16* to = d_qkv + head.queries + head.row;
    store(to, head.wide, row, length, looked, d_k, scale * factor);
    store(to + head.row, head.wide, row, length, looked, d_v, factor);
}
}
