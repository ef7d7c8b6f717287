// Pooling, NHWC. Backwards gather: an element of d_x adds up the windows that hold it, in an order of its own, so that nothing is added atomically.
// Reference: kernel.rs; PyTorch's max_pool2d (NaN wins, the first of equal ones wins) and avg_pool2d.
#include "lanes.cuh"

struct Window {
    u32 h, w, c, out_h, out_w, kernel, stride, padding;
};

struct Range {
    u32 begin, end;
};

// Rows or columns of the image under window `at`.
__device__ __forceinline__ Range under(u32 at, const Window& window, u32 side) {
    const u32 start = at * window.stride;
    const u32 end = start + window.kernel > window.padding ? start + window.kernel - window.padding : 0;
    return {start > window.padding ? start - window.padding : 0, min(end, side)};
}

// Windows that hold row or column `at`.
__device__ __forceinline__ Range holding(u32 at, const Window& window, u32 outputs) {
    const u32 place = at + window.padding;
    const u32 begin = place < window.kernel ? 0 : (place - window.kernel) / window.stride + 1;
    return {begin, min(place / window.stride + 1, outputs)};
}

// Element i of an image [batch, h, w, c].
struct Place {
    u64 sample;
    u32 row, column, channel;
};

__device__ __forceinline__ Place place(u64 i, u32 h, u32 w, u32 c) {
    const Split channel = split(i, c), column = split(channel.quotient, w), row = split(column.quotient, h);
    return {row.quotient, row.rest, column.rest, channel.rest};
}

template <int V>
struct alignas(4 * V) Winners {
    int at[V];
};

// V channels a thread, windows two by two.
template <int V>
__device__ __forceinline__ void winners_backward(
    const value_t* __restrict__ d_y, const int* __restrict__ index, value_t* __restrict__ d_x, const Window& window, u64 batch, int accumulate
) {
    const u32 tiles = window.c / V;
    EACH(i, batch * window.h * window.w * tiles) {
        const Place at = place(i, window.h, window.w, tiles);
        const int offset = (int)(at.row * window.w + at.column);
        const Range rows = holding(at.row, window, window.out_h), columns = holding(at.column, window, window.out_w);
        const u64 sample = at.sample * window.out_h * window.out_w;
        Lanes<V> total = {};
        if (accumulate) total = load<V>(d_x + i * V);
        for (u32 first = rows.begin; first < rows.end; first += 2)
            for (u32 left = columns.begin; left < columns.end; left += 2) {
                Winners<V> winner[4];
                Lanes<V> slope[4];
                // All are read before any is looked at.
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const u32 row = first + k / 2, column = left + k % 2;
                    slope[k] = {};
#pragma unroll
                    for (int v = 0; v < V; ++v) winner[k].at[v] = -1;
                    if (row >= rows.end || column >= columns.end) continue;
                    const u64 of = (sample + (u64)row * window.out_w + column) * window.c + at.channel * V;
                    winner[k] = *reinterpret_cast<const Winners<V>*>(index + of);
                    slope[k] = load<V>(d_y + of);
                }
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int v = 0; v < V; ++v) total.at[v] += winner[k].at[v] == offset ? slope[k].at[v] : 0.0f;
            }
        store<V>(d_x + i * V, total);
    }
}

extern "C" {

__global__ void max_forward(const value_t* __restrict__ x, value_t* __restrict__ y, int* __restrict__ index, Window window, u64 batch) {
    EACH(i, batch * window.out_h * window.out_w * window.c) {
        const Place at = place(i, window.out_h, window.out_w, window.c);
        const Range rows = under(at.row, window, window.h), columns = under(at.column, window, window.w);
        const value_t* own = x + at.sample * window.h * window.w * window.c + at.channel;
        float largest = -infinity();
        u32 winner = rows.begin * window.w + columns.begin;
        for (u32 row = rows.begin; row < rows.end; ++row)
            for (u32 column = columns.begin; column < columns.end; ++column) {
                const u32 offset = row * window.w + column;
                const float value = own[(u64)offset * window.c];
                if (value > largest || value != value) {
                    largest = value;
                    winner = offset;
                }
            }
        y[i] = largest;
        index[i] = (int)winner;
    }
}

// `four`: channels are a multiple of 4 and operands lie on multiples of 4 elements.
__global__ void max_backward(
    const value_t* __restrict__ d_y, const int* __restrict__ index, value_t* __restrict__ d_x, Window window, u64 batch, int accumulate, int four
) {
    if (four) winners_backward<4>(d_y, index, d_x, window, batch, accumulate);
    else winners_backward<1>(d_y, index, d_x, window, batch, accumulate);
}

__global__ void average_forward(const value_t* __restrict__ x, value_t* __restrict__ y, Window window, u64 batch, int count_padding) {
    EACH(i, batch * window.out_h * window.out_w * window.c) {
        const Place at = place(i, window.out_h, window.out_w, window.c);
        const Range rows = under(at.row, window, window.h), columns = under(at.column, window, window.w);
        const value_t* own = x + at.sample * window.h * window.w * window.c + at.channel;
        float total = 0.0f;
        for (u32 row = rows.begin; row < rows.end; ++row)
            for (u32 column = columns.begin; column < columns.end; ++column) total += own[(u64)(row * window.w + column) * window.c];
        const u32 divisor = count_padding ? window.kernel * window.kernel : (rows.end - rows.begin) * (columns.end - columns.begin);
        y[i] = total * (1.0f / (float)divisor);
    }
}

__global__ void average_backward(
    const value_t* __restrict__ d_y, value_t* __restrict__ d_x, Window window, u64 batch, int count_padding, int accumulate
) {
    EACH(i, batch * window.h * window.w * window.c) {
        const Place at = place(i, window.h, window.w, window.c);
        const Range rows = holding(at.row, window, window.out_h), columns = holding(at.column, window, window.out_w);
        float total = 0.0f;
        for (u32 row = rows.begin; row < rows.end; ++row) {
            const Range a = under(row, window, window.h);
            for (u32 column = columns.begin; column < columns.end; ++column) {
                const Range b = under(column, window, window.w);
                const u32 divisor = count_padding ? window.kernel * window.kernel : (a.end - a.begin) * (b.end - b.begin);
                total += d_y[((at.sample * window.out_h + row) * window.out_w + column) * window.c + at.channel] * (1.0f / (float)divisor);
            }
        }
        d_x[i] = accumulate ? d_x[i] + total : total;
    }
}

// grid (channel tiles of 32, samples), block (32, 8).
__global__ void global_average_forward(const value_t* __restrict__ x, value_t* __restrict__ y, u64 spatial, u32 channels) {
    __shared__ float shared[8][33];
    const u32 channel = blockIdx.x * 32 + threadIdx.x;
    const value_t* own = x + blockIdx.y * spatial * channels + channel;
    float total = 0.0f;
    if (channel < channels)
#pragma unroll 4
        for (u64 s = threadIdx.y; s < spatial; s += blockDim.y) total += own[s * channels];
    shared[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        for (u32 r = 1; r < blockDim.y; ++r) total += shared[r][threadIdx.x];
        y[(u64)blockIdx.y * channels + channel] = total / (float)spatial;
    }
}

__global__ void global_average_backward(
    const value_t* __restrict__ d_y, value_t* __restrict__ d_x, u64 batch, u64 spatial, u32 channels, int accumulate
) {
    const float share = 1.0f / (float)spatial;
    EACH(i, batch * spatial * channels) {
        const Split at = split(i, channels);
        const u64 sample = split(at.quotient, (u32)spatial).quotient;
        const float value = d_y[sample * channels + at.rest] * share;
        d_x[i] = accumulate ? d_x[i] + value : value;
    }
}
}
