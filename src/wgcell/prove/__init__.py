"""doc later"""
