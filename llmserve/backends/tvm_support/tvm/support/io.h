// TVM's public headers include this one of its own, which the wheel has not. What they name is declared here, so that they
// compile; none of it is defined, since plugins read and write no TVM files.
#pragma once

#include <cstddef>

namespace tvm::support {

class Stream {
 public:
  size_t Read(void* data, size_t size);
  size_t Write(const void* data, size_t size);
  template <typename T>
  bool Read(T* data);
  template <typename T>
  void Write(const T& data);
  template <typename T>
  bool ReadArray(T* data, size_t count);
  template <typename T>
  void WriteArray(const T* data, size_t count);
};

}  // namespace tvm::support
