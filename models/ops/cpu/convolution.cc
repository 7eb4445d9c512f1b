// Convolutions by oneDNN: of images [B, H, W, C] with kernels [h, w, C, O], as they are in memory.
//
// The images of a call are shared among the threads of XLA's pool; oneDNN has one thread for each.

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "pool.h"

using dnnl::memory;

// While it lives, oneDNN has one thread on this one.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  const int before_ = omp_get_max_threads();
};

const dnnl::engine& Cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Memory of this thread that lasts until it asks again for the same slot.
void* Scratch(int slot, size_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> blocks[3];
  thread_local size_t sizes[3] = {0, 0, 0};
  if (sizes[slot] < bytes) {
    sizes[slot] = (bytes + 4095) / 4096 * 4096;
    blocks[slot].reset(std::aligned_alloc(4096, sizes[slot]));
  }
  return blocks[slot].get();
}

// The three derivatives of < conv(x, w), g >: by g, by x, by w.
enum Kind { kForward, kInput, kKernel };

struct Geometry {
  memory::dims x, w, g, stride, dilation, before, after;

  bool operator<(const Geometry& other) const { return All() < other.All(); }
  std::tuple<const memory::dims&, const memory::dims&, const memory::dims&, const memory::dims&,
             const memory::dims&, const memory::dims&, const memory::dims&>
  All() const {
    return std::tie(x, w, g, stride, dilation, before, after);
  }
};

// A compiled convolution; oneDNN chooses the layout of `packed`, the kernel.
struct Plan {
  memory::desc x, w, g, packed, scratch, reorder_scratch;
  dnnl::primitive run, reorder;
};

template <Kind kind>
Plan Compile(const Geometry& geometry) {
  const OneThread one_thread;  // a plan is for as many threads as its maker has
  constexpr auto type = memory::data_type::f32;
  constexpr auto direct = dnnl::algorithm::convolution_direct;
  const auto& [xs, ws, gs, stride, dilation, before, after] = geometry;
  const memory::desc any(ws, type, memory::format_tag::any);
  dnnl::primitive_attr options;
  options.set_scratchpad_mode(dnnl::scratchpad_mode::user);

  Plan plan;
  plan.x = memory::desc(xs, type, memory::format_tag::nhwc);
  plan.w = memory::desc(ws, type, memory::format_tag::hwio);
  plan.g = memory::desc(gs, type, memory::format_tag::nhwc);
  const dnnl::convolution_forward::primitive_desc forward(
      Cpu(), dnnl::prop_kind::forward_training, direct, plan.x, any, plan.g, stride, dilation,
      before, after, options);
  if constexpr (kind == kForward) {
    plan.packed = forward.weights_desc();
    plan.scratch = forward.scratchpad_desc();
    plan.run = dnnl::convolution_forward(forward);
  } else if constexpr (kind == kInput) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Cpu(), direct, plan.x, any, plan.g, stride, dilation, before, after, forward, options);
    plan.packed = backward.weights_desc();
    plan.scratch = backward.scratchpad_desc();
    plan.run = dnnl::convolution_backward_data(backward);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        Cpu(), direct, plan.x, any, plan.g, stride, dilation, before, after, forward, options);
    plan.packed = backward.diff_weights_desc();
    plan.scratch = backward.scratchpad_desc();
    plan.run = dnnl::convolution_backward_weights(backward);
  }
  const auto& source = kind == kKernel ? plan.packed : plan.w;
  const auto& target = kind == kKernel ? plan.w : plan.packed;
  const dnnl::reorder::primitive_desc reorder(Cpu(), source, Cpu(), target, options);
  plan.reorder_scratch = reorder.scratchpad_desc();
  plan.reorder = dnnl::reorder(reorder);
  return plan;
}

template <Kind kind>
const Plan& Find(const Geometry& geometry) {
  static std::mutex mutex;
  static std::map<Geometry, Plan> plans;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(geometry);
  if (found == plans.end()) found = plans.emplace(geometry, Compile<kind>(geometry)).first;
  return found->second;
}

template <Kind kind>
void Convolve(const Plan& plan, float* x, float* w, float* g) {
  const OneThread one_thread;
  thread_local dnnl::stream stream(Cpu());
  const memory kernel(plan.w, Cpu(), w);
  const memory packed(plan.packed, Cpu(), Scratch(0, plan.packed.get_size()));
  auto run = [&](const dnnl::primitive& primitive, std::unordered_map<int, memory> arguments,
                 const memory::desc& space) {
    arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(space, Cpu(), Scratch(1, space.get_size())));
    primitive.execute(stream, arguments);
  };
  auto reorder = [&](const memory& source, const memory& target) {
    run(plan.reorder, {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}}, plan.reorder_scratch);
  };
  if (kind != kKernel) reorder(kernel, packed);
  run(plan.run,
      {{kind == kInput ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, memory(plan.x, Cpu(), x)},
       {kind == kKernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, packed},
       {kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, memory(plan.g, Cpu(), g)}},
      plan.scratch);
  if (kind == kKernel) reorder(packed, kernel);
}

template <Kind kind>
ffi::Error Convolution(ffi::ThreadPool pool, Array first, Array second, Result out, Ints stride,
                       Ints dilation, Ints before, Ints after) {
  const Array x = kind == kInput ? *out : first;
  const Array w = kind == kKernel ? *out : second;
  const Array g = kind == kForward ? *out : kind == kInput ? first : second;
  auto image = [](Ints d) { return memory::dims{d[0], d[3], d[1], d[2]}; };
  auto list = [](Ints d) { return memory::dims(d.begin(), d.end()); };
  const Ints window = w.dimensions();
  Geometry geometry{image(x.dimensions()),
                    {window[3], window[2], window[0], window[1]},
                    image(g.dimensions()),
                    list(stride),
                    {dilation[0] - 1, dilation[1] - 1},
                    list(before),
                    list(after)};

  const int64_t images = geometry.x[0], parts = std::min(pool.num_threads(), images);
  auto start = [=](int64_t part) { return images * part / parts; };
  std::vector<const Plan*> plans;
  try {
    for (int64_t part = 0; part < parts; ++part) {
      geometry.x[0] = geometry.g[0] = start(part + 1) - start(part);
      plans.push_back(&Find<kind>(geometry));
    }
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(error.what());
  }
  const int64_t x_size = x.element_count() / images, g_size = g.element_count() / images;
  const int64_t w_size = w.element_count(), others = kind == kKernel ? parts - 1 : 0;
  float *px = x.typed_data(), *pw = w.typed_data(), *pg = g.typed_data();
  float* sums = static_cast<float*>(Scratch(2, others * w_size * sizeof(float)));
  Share(pool, parts, [=](int64_t part) {
    float* kernel = others > 0 && part > 0 ? sums + (part - 1) * w_size : pw;
    Convolve<kind>(*plans[part], px + start(part) * x_size, kernel, pg + start(part) * g_size);
  });
  if (others == 0) return ffi::Error::Success();
  Share(pool, parts, [=](int64_t part) {
    for (int64_t other = 0; other < others; ++other) {
      const float* sum = sums + other * w_size;
#pragma omp simd
      for (int64_t k = w_size * part / parts; k < w_size * (part + 1) / parts; ++k) {
        pw[k] += sum[k];
      }
    }
  });
  return ffi::Error::Success();
}

auto ConvolutionBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<Ints>("stride")
      .Attr<Ints>("dilation")
      .Attr<Ints>("before")
      .Attr<Ints>("after");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(conv, Convolution<kForward>, ConvolutionBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv_dx, Convolution<kInput>, ConvolutionBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(conv_dw, Convolution<kKernel>, ConvolutionBinding());
