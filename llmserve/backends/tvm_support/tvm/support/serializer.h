// As io.h beside it: what TVM's public headers specialize, and nothing more.
#pragma once

namespace tvm::support {

template <typename T, typename Enabled = void>
struct Serializer {
  static constexpr bool enabled = false;
};

}  // namespace tvm::support
