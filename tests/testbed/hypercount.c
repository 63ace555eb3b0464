/* placeholder until the next step */
int hypercount_loaded = 1;
