/*
 * libvchan-extra.h: what TesseraQt-N's libvchan-xen offers besides Qubes' functions.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LIBVCHAN_EXTRA_H
#define LIBVCHAN_EXTRA_H

#include <libvchan.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Reads from a descriptor straight into the ring, once, at most `max` bytes: how many; 0 at the end of the file; -1 on failure,
 * with EAGAIN if there is no room and the channel does not block.
 */
int libvchan_read_from_fd(libvchan_t *ctrl, int fd, size_t max);

/*
 * Writes what has come straight from the ring to a descriptor, once, at most `max` bytes: how many; 0 at the end of the
 * channel; -1 on failure, with EAGAIN if nothing is there and the channel does not block.
 */
int libvchan_write_to_fd(libvchan_t *ctrl, int fd, size_t max);

/* libvchan_wait for at most so many milliseconds (for ever if negative): then -1, with ETIMEDOUT. */
int libvchan_wait_timeout(libvchan_t *ctrl, int milliseconds);

/*
 * Why the last call of this thread that failed did: a line of text, valid until the next one that fails, and its errno if
 * `error` is not NULL. NULL and 0 if none did.
 */
const char *libvchan_last_error(int *error);

#ifdef __cplusplus
}
#endif
#endif
