// Shares the pieces of a call among threads, without waiting for a thread that has not begun.
//
// The caller works through the pieces itself, and parked helpers that wake meanwhile take some of them. The
// call ends when all pieces are done, whoever came to help: where other processes occupy the cores, it takes
// about what it takes alone. Only a helper that is descheduled inside a piece is waited for, so pieces should
// be short.
#pragma once

#include <cstdint>

namespace detr_fast {

// Calls piece(context, i) once for each i in [0, pieces), on this thread and at most `threads` - 1 helpers,
// which have this thread's rounding and denormal modes. Any number of threads may call at once, pieces too.
// A piece that throws ends the call, which then throws what it did; the pieces not begun by then are left
// out.
void run_pieces(int threads, int64_t pieces, void (*piece)(const void* context, int64_t i),
                const void* context);

template <class Piece>
inline void parallel_for(int threads, int64_t pieces, const Piece& piece) {
    run_pieces(
        threads, pieces, [](const void* context, int64_t i) { (*static_cast<const Piece*>(context))(i); },
        &piece);
}

}  // namespace detr_fast
