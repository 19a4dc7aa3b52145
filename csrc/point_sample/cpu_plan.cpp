#include "point_sample/cpu.h"

namespace detr_fast {

void group_rows(const int64_t* map_index, int64_t rows, int64_t maps, int64_t* order, int64_t* first_row) {
    for (int64_t map = 0; map <= maps; ++map) first_row[map] = 0;
    for (int64_t row = 0; row < rows; ++row) ++first_row[map_index[row] + 1];
    for (int64_t map = 0; map < maps; ++map) first_row[map + 1] += first_row[map];
    for (int64_t row = 0; row < rows; ++row) order[first_row[map_index[row]]++] = row;
    for (int64_t map = maps; map > 0; --map) first_row[map] = first_row[map - 1];
    first_row[0] = 0;
}

}  // namespace detr_fast
