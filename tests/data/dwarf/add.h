static inline unsigned long add(unsigned long a, unsigned long b)
{
	return a + b;
}
