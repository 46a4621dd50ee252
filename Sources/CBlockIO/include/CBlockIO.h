#pragma once

#include "CBlockIORing.h"

// What Swift cannot import of the C library and the kernel: variadic calls, macros, inline functions.
// Every function returns what the system call would, or a negated errno; none touches errno's value for Swift.

#include "CBlockIODirectory.h"
#include "CBlockIOMapping.h"
#include "CBlockIOHook.h"
#include "CBlockIOPipe.h"
#include "CBlockIOProcess.h"
#include "CBlockIOSocket.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

// Files.

/// open(2) with O_CLOEXEC added; a descriptor or a negated errno. `mode` counts with O_CREAT only.
int cblockio_open(const char *path, int flags, unsigned mode);
/// close(2): 0 or a negated errno. The descriptor is gone in any case.
int cblockio_close(int descriptor);
/// Closes the file as close(2) does, and says what that says, but keeps the descriptor's number from other files: nothing can be
/// read from or written to what has it then (open(2), O_PATH), until it is closed, too. Without descriptors to spare the number is
/// given up at once: `is_taken` is 0 then.
int cblockio_vacate(int descriptor, int *is_taken);
/// fstat(2).
int cblockio_stat(int descriptor, struct stat *result);
/// Of what direct transfers must be multiples, in bytes; -ENODATA where the system does not say, -EOPNOTSUPP where the file
/// takes none.
int cblockio_direct_alignment(int descriptor, uint32_t *offset, uint32_t *memory);
/// Reads through this descriptor bring nothing into the page cache but what they ask for; 0 or a negated errno.
int cblockio_read_without_ahead(int descriptor);
/// Opens the file of a descriptor once more, for reading and writing past the page cache; a descriptor or a negated errno.
int cblockio_open_direct(int descriptor);
/// What the disk below a file or a block device addresses, in bytes; 0 where that is not known.
unsigned cblockio_sector_size(int descriptor);
/// All transfers of this descriptor bypass the page cache from now on; -EINVAL where its file cannot.
int cblockio_go_direct(int descriptor);
/// When the file was made, in nanoseconds since 1970; 0 where the file system does not know.
uint64_t cblockio_birth_time(int descriptor);
/// Whether the file lies on a file system that is known to have its disk here: ext4, xfs, btrfs, f2fs, tmpfs.
bool cblockio_is_local(int descriptor);
/// Whether modification times there are of this host's clock: what is local, overlayfs and ZFS.
bool cblockio_has_times_of_host(int descriptor);
/// CLOCK_REALTIME in nanoseconds since 1970.
uint64_t cblockio_wall_clock(void);
/// The descriptor's O_ flags (F_GETFL), or a negated errno.
int cblockio_flags(int descriptor);
/// Sets the descriptor's O_ flags (F_SETFL) and makes it close on exec.
int cblockio_set_flags(int descriptor, int flags);
/// ftruncate(2), repeated when a signal interrupts it.
int cblockio_truncate(int descriptor, uint64_t size);
/// The size of a block device in bytes.
int cblockio_block_device_size(int descriptor, uint64_t *size);
/// The device and inode of the file behind a loop device; -ENXIO or -ENOTTY when it has none.
int cblockio_loop_backing(int descriptor, uint64_t *device, uint64_t *inode);
/// lseek(2) with SEEK_DATA or SEEK_HOLE: an offset or a negated errno.
int64_t cblockio_seek_data(int descriptor, uint64_t offset);
int64_t cblockio_seek_hole(int descriptor, uint64_t offset);

// Blocking I/O, repeated when a signal interrupts it.

int64_t cblockio_pread(int descriptor, void *bytes, size_t count, uint64_t offset);
int64_t cblockio_pwrite(int descriptor, const void *bytes, size_t count, uint64_t offset);
/// preadv2(2) that returns -EAGAIN instead of waiting for a disk; -EOPNOTSUPP where a file system cannot tell.
int64_t cblockio_pread_cached(int descriptor, void *bytes, size_t count, uint64_t offset);
int cblockio_sync(int descriptor, bool data_only);
int cblockio_fallocate(int descriptor, int mode, uint64_t offset, uint64_t length);
int cblockio_sync_file_range(int descriptor, uint64_t offset, uint64_t length, unsigned flags);
/// Makes a range of the file share the blocks of the same range of `source` (FICLONERANGE).
int cblockio_clone_range(int descriptor, int source, uint64_t offset, uint64_t length);
/// Where the first `count` extents of these bytes end (FS_IOC_FIEMAP): an offset, the end of the bytes where there are fewer,
/// or a negated errno.
int64_t cblockio_extents_end(int descriptor, uint64_t offset, uint64_t length, uint32_t count);

/// How many pages of a part of a file are still to be written to the disk, or on their way there (cachestat(2)); or a negated errno.
int64_t cblockio_unwritten_pages(int descriptor, uint64_t offset, uint64_t length);

extern const int cblockio_zero_range;
extern const int cblockio_punch_hole;
extern const int cblockio_keep_size;
extern const unsigned cblockio_range_start_write;
extern const unsigned cblockio_range_write_and_wait;
extern const unsigned cblockio_range_wait;

// Locks that belong to an open file description (fcntl(2), "Open file description locks").

/// Takes a shared lock on one byte, at once or not at all.
int cblockio_lock_shared(int descriptor, uint64_t byte);
int cblockio_unlock(int descriptor, uint64_t byte);
/// 1 when another open file description holds any lock on the byte, 0 when none does, or a negated errno.
int cblockio_is_locked(int descriptor, uint64_t byte);

// Threads.

/// The object that the calling thread works for, 0 for none: asked dozens of times a request, and so an offset from the thread's
/// pointer that is known when the program starts, without a call.
extern _Thread_local uintptr_t cblockio_owner __attribute__((tls_model("initial-exec")));
static inline void cblockio_set_current_owner(uintptr_t owner) { cblockio_owner = owner; }
static inline uintptr_t cblockio_current_owner(void) { return cblockio_owner; }
/// Has the processor bring what is there into its cache, without waiting for it.
static inline void cblockio_prefetch(const void *address) { __builtin_prefetch(address); }
/// What the calling thread writes to a socket or a pipe that nobody reads any more raises no SIGPIPE.
void cblockio_block_pipe_signal(void);
/// Names the calling thread (at most 15 bytes).
void cblockio_name_thread(const char *name);
/// Nanoseconds of the monotonic clock.
uint64_t cblockio_now(void);
/// How often the calling thread has given up its processor by itself, to wait for something.
uint64_t cblockio_waits(void);

// Memory.

/// True when all bytes are zero; stops within 4 KiB of the first that is not.
bool cblockio_is_zero(const void *bytes, size_t count);
