// The points of a map where its logit is nearest to zero.
#pragma once

#include "common/cpu_scratch.h"
#include "point_sample/cpu_sample.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// Uniform bits: sixteen generators xoshiro128+ (Blackman and Vigna, arXiv:1805.01407) side by side, whose
// states splitmix64 makes of a seed.
class Random {
  public:
    static constexpr int kStreams = 16;

    explicit Random(uint64_t seed) {
        for (int word = 0; word < 4; ++word)
            for (int v = 0; v < kVectors; ++v)
                for (int lane = 0; lane < kLanes; ++lane) {
                    uint64_t mixed = seed += 0x9e3779b97f4a7c15u;
                    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
                    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
                    state_[word][v][lane] = static_cast<uint32_t>((mixed ^ mixed >> 31) >> 32);
                }
    }

    // Calls use(i, bits) for the next kStreams numbers, a vector from number i on each time; the lowest bits
    // are not to be relied on.
    template <class Use>
    void next(const Use& use) {
        for (int v = 0; v < kVectors; ++v) {
            vuint &a = state_[0][v], &b = state_[1][v], &c = state_[2][v], &d = state_[3][v];
            use(v * kLanes, a + d);
            const vuint shifted = b << 9;
            c ^= a;
            d ^= b;
            b ^= c;
            a ^= d;
            c ^= shifted;
            d = d << 11 | d >> 21;
        }
    }

  private:
    static constexpr int kVectors = kStreams / kLanes;
    vuint state_[4][kVectors];
};

// n uniform points [n, 2] from top to bottom, so that a map is read as it lies in memory.
inline void draw(Random& random, int64_t n, float* points) {
    // between uniform numbers in their order, and beside the first and the last, lie gaps that are to each
    // other as exponential numbers are
    float gaps[Random::kStreams], x[Random::kStreams];
    const auto next_gaps = [&] {
        random.next([&](int at, vuint bits) {
            const vfloat u = __builtin_convertvector(bit_cast<vint>(bits >> 9), vfloat) + 0.5f;
            store(gaps + at, -log(u * splat(0x1p-23f)));
        });
    };
    float sum = 0;  // as the last point has it, so that the next one is not above it
    for (int64_t i = 0; i < n; i += Random::kStreams) {
        next_gaps();
        float here = 0;
        const float before = sum;
        for (int64_t k = 0; k < at_most(n - i, Random::kStreams); ++k) {
            here += gaps[k];
            points[2 * (i + k) + 1] = sum = before + here;
        }
    }
    next_gaps();
    const float scale = 1 / (sum + gaps[0]);
    for (int64_t i = 0; i < n; i += Random::kStreams) {
        random.next([&](int at, vuint bits) {
            store(x + at, __builtin_convertvector(bit_cast<vint>(bits >> 8), vfloat) * splat(0x1p-24f));
        });
        for (int64_t k = 0; k < at_most(n - i, Random::kStreams); ++k) {
            float* point = points + 2 * (i + k);
            const float y = point[1] * scale;
            point[0] = x[k];
            point[1] = y < 1 ? y : 0x1.fffffep-1f;
        }
    }
}

// Integers in the order of |x|; NaN comes first, as it is the largest of numbers to torch.topk.
inline vuint certainty(vfloat x) {
    const vuint bits = bit_cast<vuint>(abs(x));
    return (bits + 1) & ~bit_cast<vuint>(bits > 0x7f800000u);
}

// The smallest numbers: all below `key`, and the first `ties` that equal it.
struct Cut {
    uint32_t key;
    int64_t ties;
};

// Where the `count` smallest of n keys end, 0 < count <= n: digit by digit, from the highest. `rest` has room
// for n.
inline Cut cut(const uint32_t* keys, int64_t n, int64_t count, uint32_t* rest) {
    uint32_t key = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        constexpr uint32_t kDigits = 1 << 11;
        uint32_t counts[2][kDigits] = {};  // two, so that neighbours seldom wait for each other
        for (int64_t i = 0; i < n; ++i) ++counts[i & 1][keys[i] >> shift & (kDigits - 1)];
        uint32_t digit = 0;
        for (int64_t here; here = int64_t{counts[0][digit]} + counts[1][digit], count > here; ++digit)
            count -= here;
        key |= digit << shift;
        int64_t left = 0;
        for (int64_t i = 0; i < n; ++i) {
            rest[left] = keys[i];
            left += (keys[i] >> shift & (kDigits - 1)) == digit;
        }
        keys = rest;
        n = left;
    }
    return {key, count};
}

// Copies the points of the `count` smallest keys, in their order.
inline void choose(const uint32_t* keys, int64_t n, int64_t count, uint32_t* rest, const float* points,
                   float* to) {
    Cut end = cut(keys, n, count, rest);
    for (int64_t i = 0, taken = 0; taken < count; ++i) {
        const bool tie = keys[i] == end.key && end.ties > 0;
        std::memcpy(to + 2 * taken, points + 2 * i, 2 * sizeof(float));
        end.ties -= tie;
        taken += tie || keys[i] < end.key;
    }
}

template <class T>
void uncertain(const UncertainPoints& args) {
    const PointSampleRows& at = args.sample.at;
    const int64_t offered = args.chosen ? at.points_of_set : 0;
    const int64_t padded = (offered + kChunk - 1) / kChunk * kChunk;
    const int threads = at.rows * offered < kWorthThreads ? 1 : at.threads;
    parallel_for(threads, at.rows, [&](int64_t row) {
        Random random(args.seed + static_cast<uint64_t>(row));
        float* to = args.points + 2 * row * (args.chosen + args.uniform);
        if (args.draws_uniform) draw(random, args.uniform, to + 2 * args.chosen);
        if (!offered) return;
        uint32_t* keys = static_cast<uint32_t*>(scratch(ScratchSlot::rows, sizeof(float) * 4 * padded));
        uint32_t* rest = keys + padded;
        float* drawn = reinterpret_cast<float*>(rest + padded);
        const int64_t map = at.map_index ? at.map_index[row] : row;
        const T* plane = static_cast<const T*>(args.sample.maps) + map * args.sample.map_stride;
        const float* points = at.points ? at.points + 2 * row * offered : drawn;
        if (!at.points) draw(random, offered, drawn);
        for (int64_t p = 0; p < offered; p += kChunk) {
            float logits[kChunk];
            sample(args.sample, plane, points + 2 * p, static_cast<int>(at_most(offered - p, kChunk)),
                   logits);
            for (int i = 0; i < kChunk; i += kLanes) {
                const vuint key = certainty(load(logits + i));
                std::memcpy(keys + p + i, &key, sizeof key);
            }
        }
        choose(keys, offered, args.chosen, rest, points, to);
    });
}

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
