// Matching costs of masks on the CPU.
#pragma once

#include "common/isa.h"
#include "mask_match_cost/mask_match_cost.h"

namespace detr_fast {

// Fills costs, for labels in [0, classes); ok turns false where memory ran out.
DETR_FAST_DECLARE_CPU(mask_match_cost_cpu, (const MaskMatchCost& args, bool& ok))

}  // namespace detr_fast
