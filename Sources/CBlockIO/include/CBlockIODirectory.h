#pragma once

// Names in an open directory. Every function returns what the system call would, or a negated errno.

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/// open(2) of a directory for reading, following links.
int cblockio_open_directory(const char *path);
/// openat(2) with O_CLOEXEC, O_NONBLOCK and O_NOCTTY, with O_NOFOLLOW unless `follow`.
int cblockio_open_in(int directory, const char *name, int flags, int follow);
/// openat(2) for reading and writing of a file that must not exist.
int cblockio_create_in(int directory, const char *name, unsigned mode);
/// fstatat(2).
int cblockio_stat_in(int directory, const char *name, struct stat *result, int follow);
int cblockio_remove_in(int directory, const char *name);
/// renameat(2): what `to` names is replaced.
int cblockio_rename_in(int directory, const char *from, const char *to);
/// renameat2(2) with RENAME_NOREPLACE, or link and unlink on file systems that lack it: -EEXIST when `to` exists.
int cblockio_rename_without_replacing_in(int directory, const char *from, const char *to);
/// fsync(2).
int cblockio_sync_directory(int directory);
/// The path of what a descriptor has open, as the kernel knows it: its length, or a negated errno.
int64_t cblockio_path_of(int descriptor, char *path, size_t capacity);
/// dup(2) with close-on-exec.
int cblockio_duplicate(int descriptor);
