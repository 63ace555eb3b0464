/* For programs that say what is wrong, and where. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        if (!(what)) {                                                                                                 \
            printf("%s:%d: %s is not so (errno %d)\n", __FILE__, __LINE__, #what, errno);                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A call that fails with -1 (or NULL, or 0) and this errno. */
#define FAILS(call, failed, number)                                                                                    \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        if ((call) != (failed) || errno != (number)) {                                                                 \
            printf("%s:%d: %s does not fail with %s but %d\n", __FILE__, __LINE__, #call, #number, errno);             \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
