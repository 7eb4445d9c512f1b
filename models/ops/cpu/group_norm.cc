// Group normalisation, optionally with swish, its tangent and its cotangent.
//
// An image stays in the cache of one thread from its mean to its last step.

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "pool.h"

#pragma omp declare simd notinbranch
extern "C" float expf(float) noexcept;

// Group normalisation of one image x [P, C], for groups of neighbouring channels.
class Norm {
 public:
  Norm(const float* x, const float* scale, const float* bias, int64_t pixels, int64_t channels,
       int64_t groups, float epsilon)
      : x_(x), scale_(scale), bias_(bias), pixels_(pixels), channels_(channels), groups_(groups) {
    mean_ = GroupMeans([x](int64_t i, int64_t) { return x[i]; });
    const float* mean = mean_.data();
    inverse_ = GroupMeans([=](int64_t i, int64_t c) {
      return (x[i] - mean[c]) * (x[i] - mean[c]);
    });
    for (float& value : inverse_) value = 1 / std::sqrt(value + epsilon);
  }

  // y = (x - mean) / deviation * scale + bias; with `swish`, y / (1 + exp(-y)).
  template <bool swish>
  void Forward(float* y) const {
    const float *x = x_, *mean = mean_.data(), *inverse = inverse_.data();
    const float *scale = scale_, *bias = bias_;
    Each([=](int64_t i, int64_t c) {
      const float z = (x[i] - mean[c]) * inverse[c] * scale[c] + bias[c];
      y[i] = swish ? z / (1 + expf(-z)) : z;
    });
  }

  // The tangent of y for those of x, scale and bias.
  template <bool swish>
  void Tangent(const float* dx, const float* dscale, const float* dbias, float* dy) const {
    const float *x = x_, *mean = mean_.data(), *inverse = inverse_.data();
    const float *scale = scale_, *bias = bias_;
    const std::vector<float> first = GroupMeans([dx](int64_t i, int64_t) { return dx[i]; });
    const std::vector<float> second = GroupMeans([=](int64_t i, int64_t c) {
      return dx[i] * (x[i] - mean[c]) * inverse[c];
    });
    const float *one = first.data(), *two = second.data();
    Each([=](int64_t i, int64_t c) {
      const float z = (x[i] - mean[c]) * inverse[c];
      const float dz = (dx[i] - one[c] - z * two[c]) * inverse[c];
      dy[i] = Slope<swish>(z * scale[c] + bias[c]) * (dz * scale[c] + z * dscale[c] + dbias[c]);
    });
  }

  // The cotangents of x, scale and bias for the cotangent `g` of y.
  template <bool swish>
  void Backward(const float* g, float* dx, float* dscale, float* dbias) const {
    const float *x = x_, *mean = mean_.data(), *inverse = inverse_.data();
    const float *scale = scale_, *bias = bias_;
    std::fill(dscale, dscale + channels_, 0.0f);
    std::fill(dbias, dbias + channels_, 0.0f);
    Each([=](int64_t i, int64_t c) {
      const float z = (x[i] - mean[c]) * inverse[c];
      dx[i] = g[i] * Slope<swish>(z * scale[c] + bias[c]);
      dbias[c] += dx[i];
      dscale[c] += dx[i] * z;
    });
    std::vector<float> first(channels_), second(channels_);
    for (int64_t c = 0; c < channels_; ++c) {
      first[c] = scale[c] * dbias[c];
      second[c] = scale[c] * dscale[c];
    }
    first = Spread(first), second = Spread(second);
    const float *one = first.data(), *two = second.data();
    Each([=](int64_t i, int64_t c) {
      const float z = (x[i] - mean[c]) * inverse[c];
      dx[i] = inverse[c] * (scale[c] * dx[i] - one[c] - z * two[c]);
    });
  }

 private:
  // The derivative of swish, or of nothing, at y.
  template <bool swish>
  static float Slope(float y) {
    if (!swish) return 1;
    const float gate = 1 / (1 + expf(-y));
    return gate * (1 + y * (1 - gate));
  }

  template <typename F>
  void Each(F f) const {
    for (int64_t p = 0; p < pixels_; ++p) {
#pragma omp simd
      for (int64_t c = 0; c < channels_; ++c) f(p * channels_ + c, c);
    }
  }

  // From sums over pixels for each channel, the means over groups for each channel.
  std::vector<float> Spread(std::vector<float> sums) const {
    const int64_t width = channels_ / groups_;
    for (int64_t start = 0; start < channels_; start += width) {
      float total = 0;
      for (int64_t c = start; c < start + width; ++c) total += sums[c];
      std::fill_n(sums.begin() + start, width, total / (width * pixels_));
    }
    return sums;
  }

  template <typename F>
  std::vector<float> GroupMeans(F f) const {
    std::vector<float> sums(channels_, 0.0f);
    float* total = sums.data();
    int64_t p = 0;
    for (; p + 4 <= pixels_; p += 4) {
      const int64_t i = p * channels_, j = i + channels_, k = j + channels_, l = k + channels_;
#pragma omp simd
      for (int64_t c = 0; c < channels_; ++c) {
        total[c] += (f(i + c, c) + f(j + c, c)) + (f(k + c, c) + f(l + c, c));
      }
    }
    for (; p < pixels_; ++p) {
      for (int64_t c = 0; c < channels_; ++c) total[c] += f(p * channels_ + c, c);
    }
    return Spread(std::move(sums));
  }

  const float *x_, *scale_, *bias_;
  int64_t pixels_, channels_, groups_;
  std::vector<float> mean_, inverse_;
};

// Calls f(norm, i) for every image i of x [B, P, C].
template <typename F>
ffi::Error Normalise(ffi::ThreadPool& pool, const Array& x, const Array& scale, const Array& bias,
                     int64_t groups, float epsilon, F f) {
  const Ints shape = x.dimensions();
  Share(pool, shape[0], [=](int64_t i) {
    f(Norm(x.typed_data() + i * shape[1] * shape[2], scale.typed_data(), bias.typed_data(),
           shape[1], shape[2], groups, epsilon),
      i);
  });
  return ffi::Error::Success();
}

template <bool swish>
ffi::Error GroupNorm(ffi::ThreadPool pool, Array x, Array scale, Array bias, Result y,
                     int64_t groups, float epsilon) {
  const int64_t size = x.dimensions()[1] * x.dimensions()[2];
  float* to = y->typed_data();
  return Normalise(pool, x, scale, bias, groups, epsilon, [=](const Norm& norm, int64_t i) {
    norm.Forward<swish>(to + i * size);
  });
}

template <bool swish>
ffi::Error GroupNormTangent(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array dx,
                            Array dscale, Array dbias, Result dy, int64_t groups, float epsilon) {
  const int64_t size = x.dimensions()[1] * x.dimensions()[2];
  const float *from = dx.typed_data(), *ds = dscale.typed_data(), *db = dbias.typed_data();
  float* to = dy->typed_data();
  return Normalise(pool, x, scale, bias, groups, epsilon, [=](const Norm& norm, int64_t i) {
    norm.Tangent<swish>(from + i * size, ds, db, to + i * size);
  });
}

template <bool swish>
ffi::Error GroupNormCotangent(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array g,
                              Result dx, Result dscale, Result dbias, int64_t groups,
                              float epsilon) {
  const int64_t channels = x.dimensions()[2], size = x.dimensions()[1] * channels;
  const float* from = g.typed_data();
  float *to = dx->typed_data(), *ds = dscale->typed_data(), *db = dbias->typed_data();
  return Normalise(pool, x, scale, bias, groups, epsilon, [=](const Norm& norm, int64_t i) {
    norm.Backward<swish>(from + i * size, to + i * size, ds + i * channels, db + i * channels);
  });
}

auto NormBinding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>();
}

template <typename Binding>
auto WithOptions(Binding binding) {
  return std::move(binding).template Attr<int64_t>("groups").template Attr<float>("epsilon");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(norm, GroupNorm<false>, WithOptions(NormBinding().Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_swish, GroupNorm<true>, WithOptions(NormBinding().Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_jvp, GroupNormTangent<false>,
                              WithOptions(NormBinding()
                                              .Arg<Array>()
                                              .Arg<Array>()
                                              .Arg<Array>()
                                              .Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_swish_jvp, GroupNormTangent<true>,
                              WithOptions(NormBinding()
                                              .Arg<Array>()
                                              .Arg<Array>()
                                              .Arg<Array>()
                                              .Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_vjp, GroupNormCotangent<false>,
                              WithOptions(NormBinding()
                                              .Arg<Array>()
                                              .Ret<Array>()
                                              .Ret<Array>()
                                              .Ret<Array>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_swish_vjp, GroupNormCotangent<true>,
                              WithOptions(NormBinding()
                                              .Arg<Array>()
                                              .Ret<Array>()
                                              .Ret<Array>()
                                              .Ret<Array>()));
