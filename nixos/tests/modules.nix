{ test, lib }: [ ]
