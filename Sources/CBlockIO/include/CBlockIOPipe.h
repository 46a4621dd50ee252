#pragma once

// Pipes that carry pages of the page cache to sockets, which are not copied on the way. Every function returns what the
// system call would, or a negated errno, and none waits for a pipe or a socket.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// pipe2(2), close-on-exec and non-blocking: its capacity in bytes, `capacity` or what the system allows below that.
int64_t cblockio_pipe(int ends[2], size_t capacity);
/// Whether the pages of the file stay what they were for those who still read them. XFS empties the pages at both ends of a hole
/// whole, also of what lies beside the hole and is read from the disk again; ext4 is known not to.
bool cblockio_keeps_pages(int descriptor);
/// Whether the page cache has all of these bytes as they are on the disk or are to be there (mincore(2)), and nobody keeps others
/// from reading them; false, too, where the system does not tell.
bool cblockio_is_cached(int descriptor, uint64_t offset, size_t length);
/// splice(2) from a file into an empty pipe: how many bytes, which is fewer at the end of the file, or where the pipe is full.
int64_t cblockio_fill_pipe(int pipe, int descriptor, uint64_t offset, size_t length);
/// splice(2) from a pipe to a stream socket: how many bytes, or -EAGAIN when the socket has no room. Others must not be at it to
/// send, nor to hand requests for it to the kernel, meanwhile: it does not block for so long.
int64_t cblockio_send_from_pipe(int socket, int pipe, size_t length);
/// Reads what a pipe has and drops it.
void cblockio_empty_pipe(int pipe);
