#include "add.h"

unsigned long second(unsigned long n);

unsigned long first(unsigned long n)
{
	unsigned long sum = 0;

	for (unsigned long i = 0; i < n; i++)
		sum = add(sum, second(i));
	return sum;
}

__attribute__((section(".init.text"))) unsigned long once(unsigned long n)
{
	return first(n) * 3;
}
