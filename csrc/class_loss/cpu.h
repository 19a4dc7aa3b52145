// Classification losses on the CPU.
#pragma once

#include "class_loss/class_loss.h"
#include "common/isa.h"

namespace detr_fast {

// Fill loss [layers], or grad_logits (as logits) from grad_loss [layers]. Return the first target whose label
// is no class of an object or, after all targets, the first entry of `query` outside [-1, queries), counted
// on; -1 where all are good. Nothing is written before that is known.
int64_t class_loss_cpu_fwd(const ClassLoss& args, float* loss);
int64_t class_loss_cpu_bwd(const ClassLoss& args, const float* grad_loss, void* grad_logits);

constexpr int64_t kLossRows = 32;  // rows of logits that a thread takes at a time, all of one layer

// target: [layers * images * queries], which target each row of logits is matched to, or -1.
// sums: for each chunk of each layer.
DETR_FAST_DECLARE_CPU(class_loss_fwd_kernel, (const ClassLoss& args, const int64_t* target, double* sums))
DETR_FAST_DECLARE_CPU(class_loss_bwd_kernel, (const ClassLoss& args, const int64_t* target,
                                              const float* grad_loss, void* grad_logits))

}  // namespace detr_fast
