#include <mutex>

#include "host_pages.h"

namespace rnnt_fastdecode {
namespace {

struct Use {
  Tensor page;
  cudaEvent_t written;
};

// While another thread records a graph, events must not be looked at without this.
struct RelaxedCapture {
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode); }
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
};

bool is_over(const Use& use) {
  if (cudaEventQuery(use.written) == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  cudaEventDestroy(use.written);
  return true;
}

}  // namespace

Tensor new_page(int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle page = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided_pinned(2, sizes, strides, aoti_torch_dtype_int32(),
                                                         aoti_torch_device_type_cpu(), 0, &page));
  return Tensor(page);
}

void* device_pointer(const char* op, const Tensor& page) {
  void* pointer = nullptr;
  check_cuda(op, cudaHostGetDevicePointer(&pointer, page.mutable_data_ptr(), 0));
  return pointer;
}

void keep_until_written(const char* op, const Tensor& page, cudaStream_t stream) {
  // Never freed: at the end of the process torch's memory may go before this does.
  static auto& uses = *new std::vector<Use>;
  static std::mutex mutex;
  const RelaxedCapture relaxed;
  cudaEvent_t written = nullptr;
  check_cuda(op, cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
  check_cuda(op, cudaEventRecord(written, stream));
  const std::lock_guard lock(mutex);
  std::erase_if(uses, is_over);
  uses.push_back({page, written});
}

}  // namespace rnnt_fastdecode
