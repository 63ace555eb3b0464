/*
 * Asks libxlutil what it makes of configuration texts. Reads texts from stdin, each after its length in a line; answers
 * with a line for each: "refused", or the settings a to e as they stand, strings in hexadecimal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <libxlutil.h>

static void show(XLU_Config *config, XLU_ConfigValue *value)
{
    char *text;
    XLU_ConfigList *list;

    if (xlu_cfg_value_type(value) == XLU_STRING) {
        xlu_cfg_value_get_string(config, value, &text, 1);
        putchar('"');
        for (; *text; text++)
            printf("%02x", (unsigned char)*text);
        return;
    }
    xlu_cfg_value_get_list(config, value, &list, 1);
    putchar('[');
    for (int i = 0; (value = xlu_cfg_get_listitem2(list, i)); i++) {
        show(config, value);
        putchar(',');
    }
    putchar(']');
}

int main(void)
{
    FILE *silence = fopen("/dev/null", "w");
    int length;

    while (scanf("%d", &length) == 1 && getchar() == '\n') {
        char *text = malloc(length + 1);
        XLU_Config *config = xlu_cfg_init(silence, "text");
        if (fread(text, 1, length, stdin) != (size_t)length)
            return 1;
        if (xlu_cfg_readdata(config, text, length)) {
            puts("refused");
        } else {
            for (char name[] = "a"; name[0] <= 'e'; name[0]++) {
                const char *string;
                XLU_ConfigList *list;
                putchar(' ');
                if (!xlu_cfg_get_string(config, name, &string, 1)) {
                    putchar('"');
                    for (; *string; string++)
                        printf("%02x", (unsigned char)*string);
                } else if (!xlu_cfg_get_list(config, name, &list, NULL, 1)) {
                    XLU_ConfigValue *value;
                    putchar('[');
                    for (int i = 0; (value = xlu_cfg_get_listitem2(list, i)); i++) {
                        show(config, value);
                        putchar(',');
                    }
                    putchar(']');
                }
            }
            putchar('\n');
        }
        xlu_cfg_destroy(config);
        free(text);
    }
    return 0;
}
