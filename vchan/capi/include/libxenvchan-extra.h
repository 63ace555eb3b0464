/*
 * libxenvchan-extra.h: what TesseraQt-N's libxenvchan offers besides Xen's functions.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LIBXENVCHAN_EXTRA_H
#define LIBXENVCHAN_EXTRA_H

#include <libxenvchan.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Reads from a descriptor straight into the ring, once, at most `max` bytes: how many; 0 at the end of the file; -1 on failure,
 * with EAGAIN if there is no room and the channel does not block.
 */
int libxenvchan_read_from_fd(struct libxenvchan *ctrl, int fd, size_t max);

/*
 * Writes what has come straight from the ring to a descriptor, once, at most `max` bytes: how many; 0 at the end of the
 * channel; -1 on failure, with EAGAIN if nothing is there and the channel does not block.
 */
int libxenvchan_write_to_fd(struct libxenvchan *ctrl, int fd, size_t max);

/* libxenvchan_wait for at most so many milliseconds (for ever if negative): then -1, with ETIMEDOUT. */
int libxenvchan_wait_timeout(struct libxenvchan *ctrl, int milliseconds);

/*
 * Why the last call of this thread that failed did: a line of text, valid until the next one that fails, and its errno if
 * `error` is not NULL. NULL and 0 if none did.
 */
const char *libxenvchan_last_error(int *error);

#ifdef __cplusplus
}
#endif
#endif
