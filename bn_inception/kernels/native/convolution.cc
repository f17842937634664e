// Convolutions of float32 NHWC images on CPUs with oneDNN, called by XLA.
//
// Three handlers: the convolution and the gradients of its input and its kernel.
// ../convolution.py calls them. Images stay NHWC; kernels are brought from HWIO
// into the layout that oneDNN likes, and back.

#include <omp.h>

#include <cstdlib>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using dnnl::prop_kind;
using Dims = std::vector<int64_t>;
using Buffer = ffi::Buffer<ffi::F32>;

namespace {

enum Kind { kForward, kInputGradient, kKernelGradient };

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// A primitive and how its three arrays lie in memory, for one set of sizes.
struct Plan {
  memory::desc x, y, kernel, plain_kernel, scratchpad;
  dnnl::primitive primitive;
  dnnl::reorder reorder;  // of the kernel; null if it lies well already
  bool is_reordered;
};

memory::desc Images(const Dims& nhwc) {
  return memory::desc({nhwc[0], nhwc[3], nhwc[1], nhwc[2]},
                      memory::data_type::f32, memory::format_tag::nhwc);
}

std::unique_ptr<Plan> MakePlan(Kind kind, const Dims& x, const Dims& y,
                               const Dims& kernel, const Dims& strides,
                               const Dims& before, const Dims& behind) {
  auto plan = std::make_unique<Plan>();
  plan->x = Images(x);
  plan->y = Images(y);
  const Dims oihw = {kernel[3], kernel[2], kernel[0], kernel[1]};
  const auto f32 = memory::data_type::f32;
  plan->plain_kernel = memory::desc(oihw, f32, memory::format_tag::hwio);
  const memory::desc any(oihw, f32, memory::format_tag::any);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto adopt = [&](const auto& description) {
    plan->kernel = kind == kKernelGradient ? description.diff_weights_desc()
                                           : description.weights_desc();
    plan->scratchpad = description.scratchpad_desc();
    plan->primitive = dnnl::primitive(description);
  };
  const dnnl::convolution_forward::primitive_desc forward(
      Engine(), prop_kind::forward_training, algorithm, plan->x, any, plan->y,
      strides, before, behind, attributes);
  if (kind == kForward) {
    adopt(forward);
  } else if (kind == kInputGradient) {
    adopt(dnnl::convolution_backward_data::primitive_desc(
        Engine(), algorithm, plan->x, any, plan->y, strides, before, behind,
        forward, attributes));
  } else {
    adopt(dnnl::convolution_backward_weights::primitive_desc(
        Engine(), algorithm, plan->x, any, plan->y, strides, before, behind,
        forward, attributes));
  }
  plan->is_reordered = plan->kernel != plan->plain_kernel;
  if (plan->is_reordered) {
    const bool is_result = kind == kKernelGradient;
    plan->reorder = dnnl::reorder(dnnl::reorder::primitive_desc(
        Engine(), is_result ? plan->kernel : plan->plain_kernel, Engine(),
        is_result ? plan->plain_kernel : plan->kernel));
  }
  return plan;
}

// Memory for one convolution after the other: fresh memory would have to be
// cleared by the system each time.
class Buffers {
 public:
  memory Of(const memory::desc& desc) {
    if (desc.get_size() > size_) {
      size_ = desc.get_size();
      data_.reset(std::aligned_alloc(64, (size_ + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
    }
    return memory(desc, Engine(), data_.get());
  }

 private:
  std::unique_ptr<void, decltype(&std::free)> data_{nullptr, &std::free};
  size_t size_ = 0;
};

// What a convolution needs beside its arrays.
struct Workspace {
  dnnl::stream stream{Engine()};
  Buffers kernels, scratchpads;
};

void Run(Workspace& workspace, Kind kind, const Plan& plan, float* x, float* y,
         float* kernel) {
  auto& stream = workspace.stream;
  const auto at = [](const memory::desc& desc, void* data) {
    return memory(desc, Engine(), data);
  };
  memory plain = at(plan.plain_kernel, kernel), weights = plain;
  if (plan.is_reordered) weights = workspace.kernels.Of(plan.kernel);
  if (plan.is_reordered && kind != kKernelGradient) {
    dnnl::reorder(plan.reorder).execute(stream, plain, weights);
  }
  plan.primitive.execute(
      stream,
      {{kind == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC,
        at(plan.x, x)},
       {kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, at(plan.y, y)},
       {kind == kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS,
        weights},
       {DNNL_ARG_SCRATCHPAD, workspace.scratchpads.Of(plan.scratchpad)}});
  if (plan.is_reordered && kind == kKernelGradient) {
    dnnl::reorder(plan.reorder).execute(stream, weights, plain);
  }
  stream.wait();
}

// Below, waking the other threads costs more than they save: one takes less than
// a millisecond alone, and XLA has others to do beside it.
constexpr double kManyMultiplications = 2e7;

bool IsLarge(const Dims& y, const Dims& kernel) {
  double product = 1;
  for (const int64_t size : y) product *= size;
  return product * kernel[0] * kernel[1] * kernel[2] > kManyMultiplications;
}

// Plans are made once. XLA calls from several threads: large convolutions come
// one after the other, each with all threads of OpenMP; small ones stay in
// theirs.
void Dispatch(Kind kind, const std::vector<Dims>& sizes, float* x, float* y,
              float* kernel) {
  static std::mutex plans_mutex, large_mutex;
  static std::map<std::vector<Dims>, std::unique_ptr<Plan>> plans;
  static Workspace large_workspace;
  thread_local Workspace small_workspace;
  static const int num_threads = omp_get_max_threads();
  const bool is_large = IsLarge(sizes[2], sizes[3]);
  omp_set_num_threads(is_large ? num_threads : 1);
  std::unique_lock<std::mutex> lock(plans_mutex);
  auto& plan = plans[sizes];
  if (!plan) {
    plan = MakePlan(kind, sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
                    sizes[6]);
  }
  lock.unlock();
  if (!is_large) return Run(small_workspace, kind, *plan, x, y, kernel);
  const std::lock_guard<std::mutex> turn(large_mutex);
  Run(large_workspace, kind, *plan, x, y, kernel);
}

ffi::Error Convolve(Kind kind, Buffer& x, Buffer& y, Buffer& kernel,
                    ffi::Span<const int64_t> strides,
                    ffi::Span<const int64_t> before,
                    ffi::Span<const int64_t> behind) {
  const auto dims = [](const auto& span) {
    return Dims(span.begin(), span.end());
  };
  const std::vector<Dims> sizes = {
      {kind},        dims(x.dimensions()), dims(y.dimensions()),
      dims(kernel.dimensions()), dims(strides), dims(before), dims(behind)};
  try {
    Dispatch(kind, sizes, x.typed_data(), y.typed_data(),
             kernel.typed_data());
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "out of memory in a convolution");
  }
  return ffi::Error::Success();
}

// Two arguments and a result, whatever their roles.
ffi::Error Forward(Buffer x, Buffer kernel, ffi::Result<Buffer> y,
                   ffi::Span<const int64_t> strides,
                   ffi::Span<const int64_t> before,
                   ffi::Span<const int64_t> behind) {
  return Convolve(kForward, x, *y, kernel, strides, before, behind);
}

ffi::Error InputGradient(Buffer dy, Buffer kernel, ffi::Result<Buffer> dx,
                         ffi::Span<const int64_t> strides,
                         ffi::Span<const int64_t> before,
                         ffi::Span<const int64_t> behind) {
  return Convolve(kInputGradient, *dx, dy, kernel, strides, before, behind);
}

ffi::Error KernelGradient(Buffer x, Buffer dy, ffi::Result<Buffer> dkernel,
                          ffi::Span<const int64_t> strides,
                          ffi::Span<const int64_t> before,
                          ffi::Span<const int64_t> behind) {
  return Convolve(kKernelGradient, x, dy, *dkernel, strides, before, behind);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Arg<Buffer>()
      .Arg<Buffer>()
      .Ret<Buffer>()
      .Attr<ffi::Span<const int64_t>>("strides")
      .Attr<ffi::Span<const int64_t>>("before")
      .Attr<ffi::Span<const int64_t>>("behind");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolveForward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolveInputGradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolveKernelGradient, KernelGradient,
                              Binding());
