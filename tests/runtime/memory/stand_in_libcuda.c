/* A libcuda.so.1 without a device: the calls of virtual memory management that the CUDA backend makes, over memory of
   this machine, with the real header's types. It refuses what the real driver refuses: arguments and structures that are
   not as documented, ranges and handles that are not whole, streams without a current context. Fresh memory is garbage. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GRANULARITY (1ul << 21)
#define MEMORY (1ul << 30)
#define MOST 100000
#define FIRST_HANDLE 0x7f00000000000ul
#define STREAM ((CUstream)0x7f0012345678ul)

struct handle { size_t size; int released, mappings; };
struct range { char *at; size_t size; };
struct mapping { char *at; size_t size; int handle; };

static struct handle handles[MOST];
static struct range ranges[MOST];
static struct mapping mappings[MOST];
static int made, reserved, mapped, streams, file = -1;
static size_t used;
static CUcontext const primary = (CUcontext)&used;
static __thread CUcontext current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define ANSWER(code) do { pthread_mutex_unlock(&lock); return code; } while (0)
#define REFUSE_IF(wrong, code) do { if (wrong) ANSWER(code); } while (0)
#define ENTER pthread_mutex_lock(&lock); REFUSE_IF(file < 0, CUDA_ERROR_NOT_INITIALIZED)
#define NEED_CONTEXT REFUSE_IF(current != primary, CUDA_ERROR_INVALID_CONTEXT)
#define NEED(right) REFUSE_IF(!(right), CUDA_ERROR_INVALID_VALUE)

static int whole(size_t size) { return size > 0 && size % GRANULARITY == 0; }

static int pinned_here(const CUmemAllocationProp *p) {
  CUmemAllocationProp want = {0};
  want.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  want.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  return !memcmp(p, &want, sizeof want);
}

static int handle_of(CUmemGenericAllocationHandle h) {
  unsigned long i = h - FIRST_HANDLE;
  return i < (unsigned long)made && handles[i].size && !handles[i].released ? (int)i : -1;
}

static off_t place(int i) { return (off_t)i << 25; }

static void collect(int i) {
  if (!handles[i].released || handles[i].mappings) return;
  used -= handles[i].size;
  fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, place(i), handles[i].size);
  handles[i].size = 0;
}

/* Bytes of whole mappings in a range; 0 if one reaches out of it. */
static size_t covered(char *at, size_t size) {
  size_t found = 0;
  for (int i = 0; i < mapped; i++) {
    struct mapping m = mappings[i];
    if (m.at >= at + size || m.at + m.size <= at) continue;
    if (m.at < at || m.at + m.size > at + size) return 0;
    found += m.size;
  }
  return found;
}

CUresult cuInit(unsigned flags) {
  if (getenv("STAND_IN_WITHOUT_DEVICE")) return CUDA_ERROR_NO_DEVICE;
  if (file < 0 && ((file = memfd_create("stand-in", 0)) < 0 || ftruncate(file, 1l << 50))) abort();
  return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { ENTER; NEED(ordinal == 0); *device = 0; ANSWER(CUDA_SUCCESS); }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  ENTER;
  NEED(device == 0);
  *value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  ENTER;
  NEED(device == 0);
  *context = primary;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuCtxSetCurrent(CUcontext context) { ENTER; NEED(context == primary); current = context; ANSWER(CUDA_SUCCESS); }
CUresult cuCtxSynchronize(void) { ENTER; NEED_CONTEXT; ANSWER(CUDA_SUCCESS); }
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
  ENTER;
  NEED_CONTEXT;
  NEED(flags == CU_STREAM_NON_BLOCKING);
  *stream = STREAM;
  streams++;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuStreamDestroy_v2(CUstream stream) { ENTER; NEED(stream == STREAM); streams--; ANSWER(CUDA_SUCCESS); }
CUresult cuStreamSynchronize(CUstream stream) { ENTER; NEED_CONTEXT; NEED(stream == STREAM); ANSWER(CUDA_SUCCESS); }

CUresult cuMemGetAllocationGranularity(
    size_t *size, const CUmemAllocationProp *p, CUmemAllocationGranularity_flags which) {
  ENTER;
  NEED(pinned_here(p) && which == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  *size = GRANULARITY;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemAddressReserve(CUdeviceptr *at, size_t size, size_t align, CUdeviceptr hint, unsigned long long flags) {
  ENTER;
  NEED(whole(size) && !align && !hint && !flags && reserved < MOST);
  char *raw = mmap(0, size + GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REFUSE_IF(raw == MAP_FAILED, CUDA_ERROR_OUT_OF_MEMORY);
  raw = (char *)(((unsigned long)raw + GRANULARITY - 1) / GRANULARITY * GRANULARITY);
  ranges[reserved++] = (struct range){raw, size};
  *at = (CUdeviceptr)raw;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemAddressFree(CUdeviceptr at, size_t size) {
  ENTER;
  for (int i = 0; i < reserved; i++) {
    if (ranges[i].at != (char *)at) continue;
    NEED(ranges[i].size == size);
    for (int j = 0; j < mapped; j++) NEED(mappings[j].at + mappings[j].size <= (char *)at || mappings[j].at >= (char *)at + size);
    munmap(ranges[i].at, size);
    ranges[i] = ranges[--reserved];
    ANSWER(CUDA_SUCCESS);
  }
  ANSWER(CUDA_ERROR_INVALID_VALUE);
}
CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t size, const CUmemAllocationProp *p, unsigned long long flags) {
  ENTER;
  NEED(whole(size) && pinned_here(p) && !flags && made < MOST);
  REFUSE_IF(used + size > MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
  char *view = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, place(made));
  memset(view, 0xab, size);
  munmap(view, size);
  handles[made] = (struct handle){size, 0, 0};
  used += size;
  *h = FIRST_HANDLE + made++;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemRelease(CUmemGenericAllocationHandle h) {
  ENTER;
  int i = handle_of(h);
  NEED(i >= 0);
  handles[i].released = 1;
  collect(i);
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle h, unsigned long long flags) {
  ENTER;
  int i = handle_of(h), inside = 0;
  NEED(i >= 0 && handles[i].size == size && !offset && !flags && mapped < MOST);
  for (int j = 0; j < reserved; j++) inside |= ranges[j].at <= (char *)at && (char *)at + size <= ranges[j].at + ranges[j].size;
  for (int j = 0; j < mapped; j++) inside &= mappings[j].at + mappings[j].size <= (char *)at || mappings[j].at >= (char *)at + size;
  NEED(inside);
  if (mmap((char *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, file, place(i)) == MAP_FAILED) abort();
  mappings[mapped++] = (struct mapping){(char *)at, size, i};
  handles[i].mappings++;
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemUnmap(CUdeviceptr at, size_t size) {
  ENTER;
  NEED(size && covered((char *)at, size) == size);
  for (int i = 0; i < mapped;) {
    if (mappings[i].at < (char *)at || mappings[i].at >= (char *)at + size) { i++; continue; }
    handles[mappings[i].handle].mappings--;
    collect(mappings[i].handle);
    mappings[i] = mappings[--mapped];
  }
  mmap((char *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count) {
  ENTER;
  int writable = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  NEED(count == 1 && access->location.type == CU_MEM_LOCATION_TYPE_DEVICE && access->location.id == 0);
  NEED((writable || access->flags == CU_MEM_ACCESS_FLAGS_PROT_READ) && covered((char *)at, size) == size);
  if (mprotect((char *)at, size, writable ? PROT_READ | PROT_WRITE : PROT_READ)) abort();
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t size, CUstream stream) {
  ENTER;
  NEED_CONTEXT;
  NEED(stream == STREAM);
  memset((char *)at, value, size);
  ANSWER(CUDA_SUCCESS);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  ENTER;
  NEED_CONTEXT;
  NEED(stream == STREAM);
  memcpy((char *)to, (char *)from, size);
  ANSWER(CUDA_SUCCESS);
}

/* How callers of the driver find its calls. */
#undef cuGetProcAddress
CUresult cuGetProcAddress_v2(
    const char *name, void **call, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status) {
  char newer[256];
  Dl_info self;
  dladdr((void *)cuInit, &self);
  void *library = dlopen(self.dli_fname, RTLD_NOW);
  snprintf(newer, sizeof newer, "%s_v2", name);
  if (!(*call = dlsym(library, newer))) *call = dlsym(library, name);
  if (status) *status = *call ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *call ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetProcAddress(const char *name, void **call, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, call, version, flags, 0);
}

/* What is left: bytes of memory, mappings and streams. */
size_t stand_in_left(void) { return used + mapped + streams; }
