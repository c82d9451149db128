unsigned long second(unsigned long n)
{
	if (n & 1)
		return n * n;
	return n / 3;
}
