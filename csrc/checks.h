// Argument checks for the CPU and the CUDA kernels: whole sentences that name the op, the argument, what it
// is and what was expected. They throw std::invalid_argument, which reaches Python as ValueError.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace rnnt_fastdecode {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A shape or strides as text, such as [2, 3]; made only when a message is.
struct Extents {
  const int64_t* values;
  size_t count;
};

inline Extents shape_of(const Tensor& tensor) {
  return {tensor.sizes().data(), static_cast<size_t>(tensor.dim())};
}

// A tensor of a list argument as text, such as predictor_weights[2].
struct Item {
  const char* prefix;
  const char* list;
  int64_t index;
};

// Messages are put together without streams: their locales break where a compiler links its own libstdc++
// into the library, beside the one that Python and torch share.
inline std::string text(const std::string& part) { return part; }
inline std::string text(int64_t part) { return std::to_string(part); }
inline std::string text(const Extents& part) {
  std::string list = "[";
  for (size_t i = 0; i < part.count; ++i) list += (i ? ", " : "") + std::to_string(part.values[i]);
  return list + "]";
}
inline std::string text(const Item& part) {
  return std::string(part.prefix) + part.list + "[" + std::to_string(part.index) + "]";
}
inline std::string text(const torch::stable::Device& part) {
  if (part.type() == torch::headeronly::DeviceType::CPU) return "cpu";
  if (part.type() == torch::headeronly::DeviceType::CUDA) return "cuda:" + std::to_string(part.index());
  return "another kind of device";
}

template <typename... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  throw std::invalid_argument((text(parts) + ...));
}

template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

// What every tensor of one op call has in common: the op's name for messages, and the device of the first
// tensor.
struct CallContext {
  const char* op;
  torch::stable::Device device;

  // A name is a text or an Item: a message is all that needs it.
  template <typename Name>
  void tensor(const Name& name, const Tensor& value, ScalarType dtype, std::initializer_list<int64_t> shape,
              bool contiguous = true) const {
    tensor(name, value, dtype, Extents{shape.begin(), shape.size()}, contiguous);
  }

  template <typename Name>
  void tensor(const Name& name, const Tensor& value, ScalarType dtype, Extents shape,
              bool contiguous = true) const {
    const auto sizes = value.sizes();
    bool same = sizes.size() == shape.count;
    for (size_t i = 0; same && i < shape.count; ++i) same = sizes[i] == shape.values[i];
    check(same, op, ": ", name, " must have shape ", shape, ", got ", shape_of(value), ".");
    check(value.scalar_type() == dtype, op, ": ", name, " must be ", dtype_name(dtype), ", got ",
          dtype_name(value.scalar_type()), ".");
    check(value.device() == device, op, ": ", name, " must be on ", device, ", got ", value.device(), ".");
    check(not contiguous or value.is_contiguous(), op, ": ", name, " must be contiguous.");
  }

  template <typename Name>
  void dims(const Name& name, const Tensor& value, int64_t dim, const char* letters) const {
    check(value.dim() == dim, op, ": ", name, " must have ", dim, " dimensions ", letters, ", got shape ",
          shape_of(value), ".");
  }

  template <typename Name>
  void floating(const Name& name, const Tensor& value) const {
    const ScalarType dtype = value.scalar_type();
    check(dtype == ScalarType::Float or dtype == ScalarType::BFloat16 or dtype == ScalarType::Half, op, ": ",
          name, " must be float32, bfloat16 or float16, got ", dtype_name(dtype), ".");
  }
};

// A contiguous tensor on the device of another, not initialised. torch::stable::new_empty does the same by
// way of torch's dispatcher, which looks the op up by its name: several times the cost of the memory.
inline Tensor new_tensor(const Tensor& next_to, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(shape[d], 1);
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(next_to.get(), &device_type));
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               device_type, next_to.get_device_index(), &tensor));
  return Tensor(tensor);
}

}  // namespace rnnt_fastdecode
