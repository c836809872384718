// How the lanes of a warp part and meet, and what they do together.
#pragma once
#include "machine.h"

namespace {

void look_for_others(Machine& m) {
    m.limit = std::numeric_limits<u32>::max();
    for (const Group& group : m.warp->groups)
        if (!group.waits && group.held_back == m.held_back) m.limit = std::min(m.limit, group.at);
}

// All lanes are together. In other orders than the first some of them are held back from here on.
void part(Machine& m) {
    if (m.launch->order == FORWARD) return;
    const u32 first = m.active & (m.launch->order == REVERSE ? 0xffff0000u : m.next_random());
    if (first == 0 || first == m.active) return;
    m.warp->groups.push_back({m.at, m.active & ~first, true, false});
    m.active = first;
    m.held_back = false;
}

void branch(Machine& m, const Instruction& i) {
    const u32 target = u32(i.immediate);
    if (m.running == m.active) {
        m.at = target;
        return;
    }
    m.warp->groups.push_back({target, m.running, m.held_back, false});
    m.active &= ~m.running;
    m.limit = std::min(m.limit, target);
}

void leave(Machine& m, const Instruction&) {
    m.warp->live &= ~m.running;
    m.active &= ~m.running;
    if (m.active == 0) m.limit = 0;
}

// Whether all lanes of the warp are here; else the group waits for them.
bool is_together(Machine& m) {
    if (m.active != m.warp->live) {
        m.warp->groups.push_back({m.at - 1, m.active, m.held_back, true});
        m.active = 0;
        m.limit = 0;
        return false;
    }
    if (m.running != m.active) {
        --m.at;
        m.fail(__builtin_ctz(m.active & ~m.running), "divergent warp operation: not executed here");
    }
    return true;
}
void check_mask(Machine& m, s32 operand) {
    const u32* masks = m.reg<u32>(operand);
    for (int lane = 0; lane < LANES; ++lane) {
        if (!m.runs(lane) || masks[lane] == m.warp->live) continue;
        --m.at;
        m.fail(lane, "a mask of lanes %#x where there are %#x", masks[lane], m.warp->live);
    }
}

void sync_warp(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[0]);
    m.warp->epoch = ++m.epoch;
    part(m);
}

enum Shuffle { BFLY, DOWN, UP, IDX };

template <Shuffle kind>
void shuffle(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    const bool has_pred = i.count == 2;  // of results
    const s32* in = i.operands + i.count;
    check_mask(m, in[3]);
    const u32 *value = m.reg<u32>(in[0]), *b = m.reg<u32>(in[1]), *c = m.reg<u32>(in[2]);
    u32 out[LANES], valid = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        const int clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
        const int high = (lane & segment) | (clamp & ~segment), low = lane & segment;
        const int n = b[lane] & 31;
        int from = kind == BFLY ? lane ^ n : kind == DOWN ? lane + n : kind == UP ? lane - n
                                                                   : low | (n & ~segment);
        const bool inside = kind == UP ? from >= high : from <= high;
        if (!inside) from = lane;
        valid |= u32(inside) << lane;
        if (m.runs(lane) && !m.runs(from)) {
            --m.at;
            m.fail(lane, "reads lane %d, which has left", from);
        }
        out[lane] = value[from & 31];
    }
    set(m, m.reg<u32>(i.operands[0]), [&](int lane) { return out[lane]; });
    if (has_pred) set_pred(m, i.operands[1], valid);
    part(m);
}

void vote_ballot(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[2]);
    const u32 votes = m.pred(i.operands[1]) & m.active;
    set(m, m.reg<u32>(i.operands[0]), [=](int) { return votes; });
    part(m);
}
template <bool all>
void vote(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[2]);
    const u32 votes = m.pred(i.operands[1]) & m.active;
    set_pred(m, i.operands[0], (all ? votes == m.active : votes != 0) ? ~0u : 0);
    part(m);
}

// c (16 x 8) += a (16 x 8) b (8 x 8), spread over the lanes as the PTX manual draws it, with group =
// lane / 4 and t = lane % 4:
//     a: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)
//     b: (t, group), (t + 4, group)
//     c: (group, 2 t), (group, 2 t + 1), (group + 8, 2 t), (group + 8, 2 t + 1)
// Of a factor 10 bits of fraction count; sums are rounded toward zero.
void multiply_tiles(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    auto tf32 = [&](int operand, int lane) {
        return double(float_of(m.reg<u32>(i.operands[operand])[lane] & ~0x1fffu));
    };
    double a[16][8], b[8][8];
    for (int lane = 0; lane < LANES; ++lane) {
        const int group = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; ++part)
            a[group + 8 * (part % 2)][t + 4 * (part / 2)] = tf32(4 + part, lane);
        for (int part = 0; part < 2; ++part) b[t + 4 * part][group] = tf32(8 + part, lane);
    }
    float out[4][LANES];
    for (int part = 0; part < 4; ++part)
        for (int lane = 0; lane < LANES; ++lane) {
            const int row = lane / 4 + 8 * (part / 2), column = 2 * (lane % 4) + part % 2;
            double sum = m.reg<float>(i.operands[10 + part])[lane];
            for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
            const float nearest = float(sum);
            out[part][lane] = std::fabs(double(nearest)) > std::fabs(sum)
                                  ? std::nextafterf(nearest, 0.f)
                                  : nearest;
        }
    for (int part = 0; part < 4; ++part)
        set(m, m.reg<float>(i.operands[part]), [&](int lane) { return out[part][lane]; });
    part(m);
}

// The warp stops; run_block carries out what the barrier does when all have stopped.
void sync_block(Machine& m, const Instruction&) {
    if (!is_together(m)) return;
    m.warp->at = --m.at;
    m.warp->at_barrier = true;
    m.active = 0;
    m.limit = 0;
}

}  // namespace
