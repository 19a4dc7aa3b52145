// Matching costs of masks on the CPU.
#pragma once

#include "common/isa.h"
#include "mask_match_cost/mask_match_cost.h"

namespace detr_fast {

// Fills costs, for labels in [0, classes).
DETR_FAST_DECLARE_CPU(mask_match_cost_cpu, (const MaskMatchCost& args))

}  // namespace detr_fast
